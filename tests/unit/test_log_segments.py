"""A log is divided byte for byte, and whoever takes over finds out where its writer was."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.core.logoptions import MIN_MAX_BYTES, LogOptions
from craterun.state.logcursor import LogCursor
from craterun.state.logs import INDEX, LogWriter, Stream
from tests.unit.log_builders import SMALL, Chunks, Disk, append, folder, whole

LONG = st.lists(
    st.tuples(st.sampled_from(Stream), st.integers(1, 6000).map(lambda size: b"x" * size)),
    max_size=8,
)


class Killed(BaseException):
    """The writer dies here."""


@settings(max_examples=60)
@given(LONG, LONG, st.integers(0, 80))
def test_a_writer_killed_at_any_system_call_is_succeeded_without_gap_or_doubling(
    before: Chunks, after: Chunks, calls: int
) -> None:
    with folder() as (path, fd):
        left = [calls]

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: Any, **options: Any) -> object:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **options)

            return call

        first = LogWriter(fd, SMALL)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "rename", "open"):
                patch.setattr(os, name, dying(getattr(os, name)))
            with suppress(Killed):
                append(first, before)
        reached = dict(first.sizes)
        first._close()
        second = LogWriter(fd, SMALL, resume=True)
        assert second.error is None
        # The killed write itself may have happened or not; here it has not.
        assert second.sizes == reached
        append(second, after, 500)
        second.finish()
        cursor = LogCursor(fd)
        pieces = list(cursor.read(final=True))
        cursor.close()
        for stream in Stream:
            content = whole(before, stream)[: reached[stream]] + whole(after, stream)
            assert b"".join(piece.data for piece in pieces if piece.stream is stream) == content
        for name in os.listdir(path):
            if not name.startswith(INDEX):
                assert (path / name).stat().st_size <= MIN_MAX_BYTES
        assert not cursor.missed[Stream.STDOUT]


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, LogOptions(max_bytes=MIN_MAX_BYTES, max_files=2))
    for _ in range(10):
        writer.append(Stream.STDOUT, memoryview(b"x" * 3000), 1)
    writer.append(Stream.STDERR, memoryview(b"e"), 1)
    writer.finish()
    assert sorted(os.listdir(tmp_path)) == [
        "log.index", "log.index.000007", "stderr.log", "stdout.log", "stdout.log.000007"
    ]  # fmt: skip
    assert writer.sizes == {Stream.STDOUT: 30_000, Stream.STDERR: 1}
    assert (tmp_path / "stdout.log").stat().st_size == 30_000 - 7 * MIN_MAX_BYTES
    resumed = LogWriter(fd, LogOptions(max_bytes=MIN_MAX_BYTES, max_files=2), resume=True)
    assert resumed.sizes == writer.sizes
    os.close(fd)


def test_an_index_of_many_small_chunks_is_bounded_too(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, SMALL)
    for _ in range(1000):
        writer.append(Stream.STDOUT, memoryview(b"x"), 1)
    writer.finish()
    sizes = [(tmp_path / name).stat().st_size for name in os.listdir(tmp_path)]
    assert max(sizes) <= MIN_MAX_BYTES
    assert len(sizes) == 13, "six segments, of which the last has an empty stderr.log"
    os.close(fd)


def test_a_successor_does_not_go_on_behind_a_hole(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", Disk(4).write)
        append(LogWriter(fd), [(Stream.STDOUT, b"123456")])
    resumed = LogWriter(fd, resume=True)
    append(resumed, [(Stream.STDOUT, b"789")])
    resumed.finish()
    assert (tmp_path / "stdout.log").read_bytes() == b"1234"
    assert resumed.lost_bytes == 3
    assert "at least 3 bytes" in str(resumed.complaint())
    os.close(fd)


@given(LONG, st.data())
def test_a_byte_is_found_in_the_file_that_has_it(chunks: Chunks, data: st.DataObject) -> None:
    with folder() as (_, fd):
        writer = LogWriter(fd, SMALL)
        append(writer, chunks)
        for stream in Stream:
            content = whole(chunks, stream)
            if content:
                offset = data.draw(st.integers(0, len(content) - 1))
                file, base = writer.locate(stream, offset)
                assert base <= offset
                assert os.pread(file, 1, offset - base) == content[offset : offset + 1]
                os.close(file)
        writer.finish()
