"""Reading a log, whole and in parts, against a model that knows every chunk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.core.logoptions import MIN_MAX_BYTES, LogOptions
from craterun.state.logcursor import LogCursor, Piece
from craterun.state.logindex import FILES, INDEX, Stream, numbered
from craterun.state.logs import LogWriter
from craterun.state.logtail import find_tail, last_lines
from tests.unit.builders import no_leaked_descriptors

Chunk = tuple[Stream, bytes]
TEXT = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"d\n", b"\n\n"]), max_size=6).map(b"".join)
CHUNKS = st.lists(st.tuples(st.sampled_from(Stream), TEXT.filter(bool)), max_size=20)
BIG = st.tuples(st.sampled_from(Stream), st.integers(1, 9000), st.integers(0, 255))
BIG_CHUNKS = st.lists(BIG.map(lambda big: (big[0], _patterned(big[1], big[2]))), max_size=12)
UNLIMITED = LogOptions(max_bytes=0)
TIGHT = LogOptions(max_bytes=MIN_MAX_BYTES, max_files=1000)


def _patterned(size: int, seed: int) -> bytes:
    """Bytes that differ by place, with a newline now and then."""
    unit = bytes((seed + n * 7) % 256 for n in range(251))
    return (unit * (size // 251 + 1))[:size]


@contextmanager
def folder() -> Iterator[int]:
    with tempfile.TemporaryDirectory() as path, no_leaked_descriptors():
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def write(fd: int, chunks: list[Chunk], options: LogOptions = UNLIMITED) -> LogWriter:
    writer = LogWriter(fd, options)
    for number, (stream, data) in enumerate(chunks):
        writer.append(stream, memoryview(data), 1000 + number)
    assert writer.error is None
    return writer


def whole(chunks: list[Chunk], stream: Stream) -> bytes:
    return b"".join(data for s, data in chunks if s is stream)


def read(cursor: LogCursor, *, final: bool = True) -> list[Piece]:
    pieces = list(cursor.read(final=final))
    if final:
        cursor.close()
    return pieces


def of(pieces: list[Piece], stream: Stream) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.stream is stream)


def joined(chunks: list[tuple[Stream, bytes]]) -> list[Chunk]:
    """Neighbours of one stream as one."""
    found: list[Chunk] = []
    for stream, data in chunks:
        if found and found[-1][0] is stream:
            found[-1] = (stream, found[-1][1] + data)
        else:
            found.append((stream, data))
    return found


def as_chunks(pieces: list[Piece]) -> list[Chunk]:
    return joined([(piece.stream, piece.data) for piece in pieces])


class Line:
    """A line of the model: where it lies, when it began, and where in the whole order it ends."""

    def __init__(self, stream: Stream, start: int, began: int) -> None:
        self.stream, self.start, self.began = stream, start, began
        self.end, self.order = start, (0, 0)


def lines_of(chunks: list[Chunk]) -> list[Line]:
    """All lines in the order of their last bytes, found byte by byte."""
    done: list[Line] = []
    growing: dict[Stream, Line] = {}
    at = dict.fromkeys(Stream, 0)
    for number, (stream, data) in enumerate(chunks):
        for place in range(len(data)):
            line = growing.setdefault(stream, Line(stream, at[stream], 1000 + number))
            at[stream] += 1
            line.end, line.order = at[stream], (number, place)
            if data[place : place + 1] == b"\n":
                done.append(growing.pop(stream))
    return sorted([*done, *growing.values()], key=lambda line: line.order)


def text_of(lines: list[Line], chunks: list[Chunk], stream: Stream) -> bytes:
    mine = sorted((line for line in lines if line.stream is stream), key=lambda line: line.start)
    return b"".join(whole(chunks, stream)[line.start : line.end] for line in mine)


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [UNLIMITED, TIGHT], ids=["one segment", "many"])
@settings(max_examples=40)
@given(chunks=BIG_CHUNKS)
def test_everything_comes_back_in_order_whatever_the_segments(
    options: LogOptions, chunks: list[Chunk]
) -> None:
    with folder() as fd:
        write(fd, chunks, options).finish()
        cursor = LogCursor(fd)
        cursor.stop_here()
        assert as_chunks(read(cursor)) == joined(chunks)
        assert sum(cursor.missed.values()) == 0
        if options is TIGHT:
            assert all(
                e.stat(follow_symlinks=False).st_size <= MIN_MAX_BYTES for e in os.scandir(fd)
            )


@given(CHUNKS)
def test_pieces_of_a_timed_cursor_have_the_times_of_their_chunks(chunks: list[Chunk]) -> None:
    with folder() as fd:
        write(fd, chunks).finish()
        pieces = read(LogCursor(fd, timed=True))
        assert [(p.stream, p.time_ns, p.data) for p in pieces] == [
            (stream, 1000 + n, data) for n, (stream, data) in enumerate(chunks)
        ]


@settings(max_examples=40)
@given(BIG_CHUNKS, st.data())
def test_a_follower_sees_each_chunk_once_whenever_it_looks(
    chunks: list[Chunk], data: st.DataObject
) -> None:
    """It looks after any chunk, while segments are finished under it."""
    with folder() as fd:
        writer = LogWriter(fd, TIGHT)
        cursor = LogCursor(fd)
        seen: list[Piece] = []
        for number, (stream, content) in enumerate(chunks):
            writer.append(stream, memoryview(content), number)
            if data.draw(st.booleans()):
                seen += read(cursor, final=False)
                assert as_chunks(seen) == joined(chunks[: number + 1])
        assert not cursor.ended
        writer.finish()
        seen += read(cursor, final=False)
        assert cursor.ended == bool(chunks)
        seen += read(cursor)
        assert as_chunks(seen) == joined(chunks)


@settings(max_examples=40)
@given(BIG_CHUNKS, st.integers(1, 3), st.data())
def test_what_a_follower_missed_is_counted_to_the_byte(
    chunks: list[Chunk], files: int, data: st.DataObject
) -> None:
    with folder() as fd:
        writer = LogWriter(fd, LogOptions(max_bytes=MIN_MAX_BYTES, max_files=files))
        cursor = LogCursor(fd)
        list(cursor.read())
        for number, (stream, content) in enumerate(chunks):
            writer.append(stream, memoryview(content), number)
            if number == 0 or data.draw(st.integers(0, 3)) == 0:
                list(cursor.read())
        before = dict(cursor.positions)
        writer.finish()
        list(cursor.read(final=True))
        for stream in Stream:
            assert cursor.positions.get(stream, 0) == len(whole(chunks, stream))
            assert 0 <= cursor.missed[stream] <= len(whole(chunks, stream))
        assert before.keys() <= set(Stream)
        cursor.close()
        names = [name for name in os.listdir(fd) if name.startswith(INDEX)]
        assert len(names) <= files


@given(CHUNKS, st.integers(0, 5))
def test_without_index_both_streams_are_still_whole(chunks: list[Chunk], lines: int) -> None:
    with folder() as fd:
        write(fd, chunks).finish()
        if chunks:
            os.unlink(INDEX, dir_fd=fd)
        pieces = read(LogCursor(fd))
        tail = read(LogCursor(fd, start=find_tail(fd, lines)))
        for stream in Stream:
            assert of(pieces, stream) == whole(chunks, stream)
            assert whole(chunks, stream).endswith(of(tail, stream))


@given(CHUNKS.filter(bool), st.integers(0, 200))
def test_bytes_without_an_entry_come_out_too(chunks: list[Chunk], cut: int) -> None:
    with folder() as fd:
        write(fd, chunks).finish()
        index = os.open(INDEX, os.O_WRONLY, dir_fd=fd)
        os.ftruncate(index, max(0, os.fstat(index).st_size - cut))
        os.close(index)
        pieces = read(LogCursor(fd))
        for stream in Stream:
            assert of(pieces, stream) == whole(chunks, stream)


def test_a_follower_waits_for_the_entry_of_bytes_that_are_there_already(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = write(fd, [(Stream.STDOUT, b"one\n")])
    cursor = LogCursor(fd)
    assert of(read(cursor, final=False), Stream.STDOUT) == b"one\n"
    with (tmp_path / "stdout.log").open("ab") as file:
        file.write(b"two\n")
    assert read(cursor, final=False) == []
    assert of(read(cursor), Stream.STDOUT) == b"two\n"
    writer.finish()
    os.close(fd)


def test_plain_reading_ends_where_the_log_ended_when_it_began(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = write(fd, [(Stream.STDOUT, b"one\n")], TIGHT)
    cursor = LogCursor(fd)
    cursor.stop_here()
    for _ in range(9):
        writer.append(Stream.STDOUT, memoryview(b"x" * 1000), 5)
    writer.finish()
    assert of(read(cursor), Stream.STDOUT) == b"one\n"
    assert (tmp_path / numbered(FILES[Stream.STDOUT], 1)).exists()
    os.close(fd)


def test_a_truncated_file_ends_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    write(fd, [(Stream.STDOUT, b"one\n"), (Stream.STDERR, b"err\n")]).finish()
    os.truncate(tmp_path / "stdout.log", 2)
    pieces = read(LogCursor(fd))
    assert (of(pieces, Stream.STDOUT), of(pieces, Stream.STDERR)) == (b"on", b"err\n")
    os.close(fd)


# --- parts of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [UNLIMITED, TIGHT], ids=["one segment", "many"])
@settings(max_examples=60)
@given(chunks=st.one_of(CHUNKS, BIG_CHUNKS), count=st.integers(0, 40))
def test_tail_is_the_last_lines_in_the_merged_order(
    options: LogOptions, chunks: list[Chunk], count: int
) -> None:
    with folder() as fd:
        write(fd, chunks, options).finish()
        chosen = lines_of(chunks)[-count:] if count else []
        place = find_tail(fd, count)
        pieces = read(LogCursor(fd, start=place))
        for stream in Stream:
            assert of(pieces, stream) == text_of(chosen, chunks, stream)
        cursor = LogCursor(fd)
        again = last_lines(cursor.read(final=True), count)
        cursor.close()
        assert again == {
            stream: place.positions[stream]
            for stream in Stream
            if any(line.stream is stream for line in chosen)
        }


@given(CHUNKS, st.integers(0, 10), st.sampled_from(Stream))
def test_tail_of_one_stream_is_not_disturbed_by_the_other(
    chunks: list[Chunk], count: int, stream: Stream
) -> None:
    with folder() as fd:
        write(fd, chunks).finish()
        mine = [line for line in lines_of(chunks) if line.stream is stream]
        place = find_tail(fd, count, [stream])
        pieces = read(LogCursor(fd, streams=[stream], start=place))
        assert of(pieces, stream) == text_of(mine[-count:] if count else [], chunks, stream)
        assert {piece.stream for piece in pieces} <= {stream}


@pytest.mark.parametrize("timed", [False, True])
@given(chunks=CHUNKS, since=st.integers(995, 1025), until=st.integers(995, 1025))
def test_since_and_until_choose_whole_lines_by_when_they_began(
    timed: bool, chunks: list[Chunk], since: int, until: int
) -> None:
    with folder() as fd:
        write(fd, chunks).finish()
        cursor = LogCursor(fd, timed=timed, since_ns=since, until_ns=until)
        pieces = read(cursor)
        chosen = [line for line in lines_of(chunks) if since <= line.began < until]
        for stream in Stream:
            assert of(pieces, stream) == text_of(chosen, chunks, stream)


@settings(max_examples=40)
@given(chunks=BIG_CHUNKS, since=st.integers(998, 1012), until=st.integers(998, 1014))
def test_since_and_until_know_the_line_that_goes_on_in_the_next_segment(
    chunks: list[Chunk], since: int, until: int
) -> None:
    with folder() as fd:
        write(fd, chunks, TIGHT).finish()
        pieces = read(LogCursor(fd, since_ns=since, until_ns=until))
        chosen = [line for line in lines_of(chunks) if since <= line.began < until]
        for stream in Stream:
            assert of(pieces, stream) == text_of(chosen, chunks, stream)


@given(CHUNKS, st.integers(0, 8), CHUNKS)
def test_following_from_the_tail_on_gives_all_that_comes_later(
    before: list[Chunk], count: int, after: list[Chunk]
) -> None:
    with folder() as fd:
        writer = write(fd, before, TIGHT)
        place = find_tail(fd, count)
        cursor = LogCursor(fd, start=place)
        seen = read(cursor, final=False)
        for stream, data in after:
            writer.append(stream, memoryview(data), 5000)
            seen += read(cursor, final=False)
        writer.finish()
        seen += read(cursor)
        for stream in Stream:
            everything = whole(before + after, stream)
            assert of(seen, stream) == everything[place.positions[stream] :]


def test_tail_of_a_huge_file_reads_its_end_only(tmp_path: Path) -> None:
    """Five gigabytes, mostly a hole; counted in bytes that were read."""
    fd = os.open(tmp_path, os.O_RDONLY)
    size = 5 * 1024**3
    with (tmp_path / "stdout.log").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"\nlast but one\nlast\n")
    (tmp_path / "stderr.log").touch()
    read_bytes = count_reads(lambda: find_tail(fd, 2))
    assert find_tail(fd, 2).positions[Stream.STDOUT] == size + 1
    assert read_bytes < 512 * 1024
    writer = LogWriter(fd, UNLIMITED, resume=True)
    writer.append(Stream.STDERR, memoryview(b"once\n"), 1)
    for _ in range(1000):
        writer.append(Stream.STDOUT, memoryview(b"a line\n"), 2)
    writer.finish()
    assert count_reads(lambda: find_tail(fd, 10)) < 512 * 1024
    assert find_tail(fd, 1001).positions[Stream.STDERR] == 0
    os.close(fd)


def count_reads(function: Callable[[], object]) -> int:
    """Bytes that this process reads in ``function`` (proc_pid_io(5))."""

    def so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = so_far()
    function()
    return so_far() - before
