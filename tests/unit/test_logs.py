"""Logs are byte-exact, the index gives their order, and a full disk is told, not hidden."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.state.logs import FILES, INDEX, IndexEntry, LogWriter, Stream, read_index
from tests.unit.builders import no_leaked_descriptors
from tests.unit.log_builders import CHUNKS, ENTRY_BYTES, Chunks, Disk, append, folder, replay, whole

# --- all is well ----------------------------------------------------------------------------------


@given(CHUNKS)
def test_files_are_byte_exact_and_the_index_gives_back_the_order(chunks: Chunks) -> None:
    with folder() as (path, fd):
        writer = LogWriter(fd)
        append(writer, chunks)
        writer.finish()
        for stream, name in FILES.items():
            assert (path / name).read_bytes() == whole(chunks, stream)
            assert writer.sizes[stream] == len(whole(chunks, stream))
        if chunks:
            assert replay(path) == chunks
            times = [entry.time_ns for entry in read_index(str(path / INDEX))]
            assert times == [1000 + number for number in range(len(chunks))]
        assert (writer.error, writer.lost_bytes, writer.is_lossy()) == (None, 0, False)


@given(CHUNKS, CHUNKS)
def test_a_second_writer_goes_on_where_the_first_one_stopped(before: Chunks, after: Chunks) -> None:
    with folder() as (path, fd):
        first = LogWriter(fd)
        append(first, before)
        first.finish()
        second = LogWriter(fd, resume=True)
        append(second, after, len(before))
        second.finish()
        assert second.sizes == {s: len(whole(before + after, s)) for s in Stream}
        for stream, name in FILES.items():
            assert (path / name).read_bytes() == whole(before + after, stream)
        if before or after:
            assert replay(path) == before + after


@given(CHUNKS.filter(bool), CHUNKS, st.integers(1, ENTRY_BYTES - 1))
def test_a_torn_index_entry_does_not_spoil_those_of_a_second_writer(
    before: Chunks, after: Chunks, torn: int
) -> None:
    with folder() as (path, fd):
        first = LogWriter(fd)
        append(first, before)
        first.finish()
        os.truncate(path / INDEX, (len(before) - 1) * ENTRY_BYTES + torn)
        second = LogWriter(fd, resume=True)
        append(second, after, len(before))
        second.finish()
        assert replay(path) == before + after, "bytes without an entry get one"


@given(CHUNKS.filter(bool), st.integers(0, 23))
def test_a_torn_last_entry_is_left_out(chunks: Chunks, torn: int) -> None:
    with folder() as (path, fd):
        writer = LogWriter(fd)
        append(writer, chunks)
        writer.finish()
        os.truncate(path / INDEX, (len(chunks) - 1) * ENTRY_BYTES + torn)
        assert replay(path) == chunks[:-1]


@given(
    st.builds(
        IndexEntry,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.sampled_from(Stream),
    )
)
def test_an_entry_has_24_bytes_whatever_its_values(entry: IndexEntry) -> None:
    with folder() as (path, _):
        (path / INDEX).write_bytes(entry.pack())
        assert len(entry.pack()) == ENTRY_BYTES
        assert list(read_index(str(path / INDEX))) == [entry]


def test_the_format_on_disk_is_the_documented_one() -> None:
    packed = IndexEntry(time_ns=0x0102, offset=3, length=4, stream=Stream.STDERR).pack()
    assert packed == (
        b"\x02\x01\0\0\0\0\0\0" b"\x03\0\0\0\0\0\0\0" b"\x04\0\0\0" b"\x02" b"\0\0\0"
    )  # fmt: skip


def test_files_are_made_at_their_first_byte_and_both_by_the_end(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd)
    assert os.listdir(tmp_path) == []
    append(writer, [(Stream.STDERR, b"x")])
    assert sorted(os.listdir(tmp_path)) == ["log.index", "stderr.log"]
    writer.finish()
    assert sorted(os.listdir(tmp_path)) == ["log.index", "stderr.log", "stdout.log"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    os.close(fd)


def test_the_index_never_speaks_of_bytes_that_are_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    real = os.write

    def watch(fd: int, data: bytes) -> int:
        written.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).encode())
        return real(fd, data)

    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", watch)
        append(writer, [(Stream.STDOUT, b"a"), (Stream.STDERR, b"b")])
    writer.finish()
    os.close(fd)
    assert written == [b"stdout.log", b"log.index", b"stderr.log", b"log.index"]


def test_a_reader_sees_what_was_appended_and_owns_its_descriptor(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with no_leaked_descriptors():
        writer = LogWriter(fd)
        append(writer, [(Stream.STDOUT, b"hel")])
        early, base = writer.locate(Stream.STDOUT, 0)
        append(writer, [(Stream.STDOUT, b"lo")])
        writer.finish()
        assert (base, os.pread(early, 100, 0)) == (0, b"hello")
        os.close(early)
    os.close(fd)


def test_a_log_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "box" / "stdout.log").symlink_to(victim)
    fd = os.open(tmp_path / "box", os.O_RDONLY)
    writer = LogWriter(fd)
    append(writer, [(Stream.STDOUT, b"x")])
    writer.finish()
    os.close(fd)
    assert victim.read_text() == "precious"
    assert writer.error is not None
    assert (writer.error.errno, writer.lost_bytes) == (errno.ELOOP, 1)


# --- a full disk ----------------------------------------------------------------------------------


@given(CHUNKS, st.integers(0, 400), CHUNKS)
def test_a_full_disk_is_counted_to_the_byte_and_leaves_no_hole(
    chunks: Chunks, free: int, later: Chunks
) -> None:
    with folder() as (path, fd), pytest.MonkeyPatch.context() as patch:
        disk = Disk(free)
        patch.setattr(os, "write", disk.write)
        writer = LogWriter(fd)
        append(writer, chunks)
        needed = sum(len(data) + ENTRY_BYTES for _, data in chunks)
        assert writer.is_lossy() == (needed > free)
        disk.free = 1 << 20  # somebody makes room: what comes now would follow a hole
        append(writer, later, len(chunks))
        writer.finish()
        given_in = chunks + later
        total = sum(len(data) for _, data in given_in)
        assert writer.lost_bytes == total - sum(writer.sizes.values())
        for stream, name in FILES.items():
            there = (path / name).read_bytes() if (path / name).exists() else b""
            assert len(there) == writer.sizes[stream]
            assert whole(given_in, stream).startswith(there)
        if needed > free:
            assert isinstance(writer.error, OSError)
            assert writer.error.errno == errno.ENOSPC
            assert sum(writer.sizes.values()) <= sum(len(data) for _, data in chunks)
        else:
            assert writer.lost_bytes == 0


@given(CHUNKS.filter(bool), st.integers(0, 400))
def test_after_a_full_disk_the_index_still_tells_the_truth(chunks: Chunks, free: int) -> None:
    with folder() as (path, fd):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", Disk(free).write)
            writer = LogWriter(fd)
            append(writer, chunks)
            writer.finish()
        if (path / INDEX).exists():
            entries = list(read_index(str(path / INDEX)))
            for entry, (stream, data) in zip(entries, chunks, strict=False):
                assert entry.stream is stream
                content = (path / FILES[stream]).read_bytes()
                assert content[entry.offset : entry.offset + entry.length] == data


def test_a_failure_on_one_stream_ends_the_log_of_both(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd)
    append(writer, [(Stream.STDERR, b"12"), (Stream.STDOUT, b"345"), (Stream.STDERR, b"6789")])
    writer.finish()
    os.close(fd)
    assert writer.error is not None
    assert writer.error.errno == errno.EISDIR
    assert (tmp_path / "stderr.log").read_bytes() == b"12"
    assert writer.lost_bytes == 7


def test_finishing_twice_closes_nobody_elses_descriptors(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with no_leaked_descriptors():
        writer = LogWriter(fd)
        append(writer, [(Stream.STDOUT, b"x")])
        writer.finish()
        others = [os.dup(0) for _ in range(5)]
        writer.finish()
        for other in others:
            os.close(other)
    os.close(fd)


# --- too few descriptors --------------------------------------------------------------------------


@given(CHUNKS)
def test_where_files_may_not_stay_open_the_log_is_the_same_and_none_does(chunks: Chunks) -> None:
    with folder() as (path, fd):
        writer = LogWriter(fd, may_keep=lambda number: False)
        for chunk in chunks:
            with no_leaked_descriptors():
                append(writer, [chunk])
        writer.finish()
        assert writer.complaint() is None
        for stream, name in FILES.items():
            assert (path / name).read_bytes() == whole(chunks, stream)
        assert replay(path) == chunks if chunks else True
