"""Whoever follows a log the short way prints what the log has, in its order, each byte once.

Reader and writer are in one thread, so that a test decides where in each other's work they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.client.express import MOST_BYTES, ExpressWay
from craterun.linux.watches import FolderWatches, written
from craterun.state.logcursor import LogCursor
from craterun.state.logs import LogWriter, Stream
from tests.unit.log_builders import SMALL, folder, whole


class _StillError(Exception):
    """There are no news."""


class Follower:
    """Prints a log, as far as that is possible without waiting, each time that it is asked to.

    :ivar ordinarily: how many pieces were not printed the short way
    """

    def __init__(self, directory: int, streams: list[Stream]) -> None:
        self.cursor = LogCursor(directory, streams=streams)
        self._watches = FolderWatches()
        self._watch = self._watches.add(directory)
        self._printed: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        number = self._printed.fileno()
        self._way = ExpressWay(self.cursor, dict.fromkeys(streams, number), self._put)
        self.ordinarily = 0

    @staticmethod
    def _put(target: int, data: bytes) -> None:
        os.write(target, data)

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._watches.fileno(), select.POLLIN)
        if not (ready := poll.poll(0)):
            raise _StillError
        return ready

    def look(self) -> None:
        """Print what is new."""
        with contextlib.suppress(_StillError):
            while True:
                if self._way.serve(self._wait, self._watches, self._watch):
                    self._watches.take()  # it had no file to look into
                self.read()

    def read(self, *, final: bool = False) -> None:
        """Print what is new the ordinary way."""
        for piece in self.cursor.read(final=final):
            self.ordinarily += 1
            self._printed.write(piece.data)

    def printed(self) -> bytes:
        """All that was."""
        return os.pread(self._printed.fileno(), 1 << 24, 0)

    def close(self) -> None:
        """Stop following."""
        self._watches.close()
        self.cursor.close()
        self._printed.close()


@contextlib.contextmanager
def followed(
    streams: list[Stream] | None = None,
) -> Iterator[tuple[Path, LogWriter, Follower]]:
    """A log in a new folder, and who follows it."""
    with folder() as (path, directory):
        follower = Follower(directory, streams or list(Stream))
        writer = LogWriter(directory, SMALL)
        try:
            yield path, writer, follower
        finally:
            writer.finish()
            follower.close()


def add(writer: LogWriter, stream: Stream, data: bytes, follower: Follower | None = None) -> None:
    """Append a chunk. If a follower is given, it looks before the chunk is in the index."""
    then = None if follower is None else lambda _data, _offset: follower.look()
    writer.append(stream, memoryview(data), None, then)


@pytest.mark.parametrize("streams", [list(Stream), [Stream.STDOUT]])
def test_a_chunk_is_printed_before_it_is_in_the_index(streams: list[Stream]) -> None:
    with followed(streams) as (path, writer, follower):
        add(writer, Stream.STDOUT, b"first\n")
        follower.look()
        before = follower.ordinarily
        for number in range(100):
            index_size = (path / "log.index").stat().st_size
            add(writer, Stream.STDOUT, b"%d\n" % number, follower)
            assert (path / "log.index").stat().st_size == index_size + 24
        expected = b"first\n" + b"".join(b"%d\n" % number for number in range(100))
        assert follower.printed() == expected
        assert follower.ordinarily == before, "all of that went the short way"


def test_the_order_of_the_index_is_kept_whoever_is_first_seen() -> None:
    """Chunks of both streams that come while the follower sleeps, and one that is not indexed."""
    with followed() as (_, writer, follower):
        for stream in Stream:
            add(writer, stream, b"%d\n" % stream)
        follower.look()
        add(writer, Stream.STDERR, b"a")
        add(writer, Stream.STDOUT, b"b")
        add(writer, Stream.STDERR, b"c")
        add(writer, Stream.STDOUT, b"d", follower)
        assert follower.printed() == b"1\n2\nabc", "d might have been preceded by others"
        follower.look()
        assert follower.printed() == b"1\n2\nabcd"


def test_what_is_written_while_the_index_is_read_is_not_slept_through() -> None:
    """A chunk comes after the news were taken: its entry is news again."""
    with followed() as (_, writer, follower):
        add(writer, Stream.STDOUT, b"0")
        follower.look()
        add(writer, Stream.STDOUT, b"1", follower)
        follower.look()
        add(writer, Stream.STDOUT, b"2")
        follower.look()
        assert follower.printed() == b"012"


@pytest.mark.parametrize("size", [MOST_BYTES - 1, MOST_BYTES, MOST_BYTES + 1, 5 * MOST_BYTES])
def test_chunks_of_any_size_are_printed_once(size: int) -> None:
    with followed() as (_, writer, follower):
        add(writer, Stream.STDOUT, b"begin")
        follower.look()
        data = os.urandom(size)
        add(writer, Stream.STDOUT, data, follower)
        follower.look()
        assert follower.printed() == b"begin" + data


def test_the_end_mark_is_seen() -> None:
    with followed() as (_, writer, follower):
        add(writer, Stream.STDOUT, b"all")
        follower.look()
        add(writer, Stream.STDOUT, b" there is", follower)
        writer.finish()
        follower.look()
        assert follower.cursor.ended
        assert follower.printed() == b"all there is"


def test_a_log_that_somebody_truncated_does_not_stop_the_follower() -> None:
    with followed() as (path, writer, follower):
        add(writer, Stream.STDOUT, b"before")
        follower.look()
        os.truncate(path / "stdout.log", 0)
        add(writer, Stream.STDOUT, b"lost", follower)
        follower.look()
        add(writer, Stream.STDERR, b"after", follower)
        follower.look()
        assert follower.printed().startswith(b"before")
        assert follower.printed().endswith(b"after")


def test_news_are_what_the_kernel_says(tmp_path: Path) -> None:
    """Of names of all lengths: they are padded."""
    directory = os.open(tmp_path, os.O_RDONLY)
    watches = FolderWatches()
    try:
        for length in range(1, 40):
            name = "x" * length
            (tmp_path / name).touch()
        watch = watches.add(directory)
        for length in range(1, 40):
            with open(tmp_path / ("x" * length), "ab", buffering=0) as file:
                file.write(b"x")
            assert watches.read() == written(watch, "x" * length)
    finally:
        watches.close()
        os.close(directory)


def test_it_goes_on_in_the_next_segment() -> None:
    """Each time, the ordinary way finds the new files, and then the short way is open again."""
    chunks = [b"%0500d\n" % number for number in range(100)]
    with followed() as (path, writer, follower):
        for number, data in enumerate(chunks):
            add(writer, list(Stream)[number % 2], data, follower)
            follower.look()
        assert len(list(path.glob("log.index.*"))) > 5
        assert follower.printed() == b"".join(chunks)
        assert follower.ordinarily < 30


STEPS = st.lists(
    st.tuples(
        st.sampled_from(Stream),
        st.binary(min_size=1, max_size=900),
        st.sampled_from(["amid", "after", "not"]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps=STEPS, streams=st.sampled_from([list(Stream), [Stream.STDOUT], [Stream.STDERR]]))
def test_wherever_it_looks_it_prints_the_log(
    steps: list[tuple[Stream, bytes, str]], streams: list[Stream]
) -> None:
    """Through rotations, too: a segment has 4 KiB."""
    with followed(streams) as (_, writer, follower):
        for stream, data, when in steps:
            add(writer, stream, data, follower if when == "amid" else None)
            if when == "after":
                follower.look()
        writer.finish()
        follower.look()
        follower.read(final=True)
        chunks = [(stream, data) for stream, data, _ in steps if stream in streams]
        assert follower.printed() == b"".join(data for _, data in chunks)
        assert follower.cursor.missed == dict.fromkeys(Stream, 0)
        assert all(
            follower.cursor.positions.get(stream, 0) == len(whole(chunks, stream))
            for stream in streams
        )
