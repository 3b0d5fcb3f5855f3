"""Output that goes from pipe to log by splice(2): exact, bounded, and not lost amid it."""

from __future__ import annotations

import errno
import os
import pty
import resource
import signal
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from craterun.core.logoptions import LogOptions
from craterun.state.loghead import Head
from craterun.state.logs import FILES, INDEX, LogWriter, Stream, read_index
from craterun.supervisor.bulk import move_bulk
from tests.kernel.forked import in_child, mount_tmpfs, private_mounts

NOISE = bytes(range(251)) * 4000
OUT = Stream.STDOUT
UNBOUNDED = LogOptions(max_bytes=0)
PIPE_BYTES = 64 * 1024


@contextmanager
def fed_pipe(data: bytes) -> Iterator[int]:
    """The read end of a pipe into which a thread writes ``data``, and closes it."""
    read_end, write_end = os.pipe()

    def feed() -> None:
        with open(write_end, "wb", buffering=0) as pipe:
            rest = memoryview(data)
            while rest:
                rest = rest[pipe.write(rest) :]

    feeder = threading.Thread(target=feed)
    feeder.start()
    os.set_blocking(read_end, False)
    try:
        yield read_end
        feeder.join()
    finally:
        os.close(read_end)


def move_all(pipe: int, writer: LogWriter) -> bytes:
    """Until the end of the pipe; what was not logged."""
    unlogged = b""
    while not writer.is_lossy():
        before = writer.sizes[OUT]
        unlogged = move_bulk(pipe, writer, OUT)
        if writer.sizes[OUT] == before and is_at_end(pipe):
            break
    return unlogged


def is_at_end(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


@contextmanager
def spliced() -> Iterator[list[int]]:
    """What each splice(2) into a log has moved."""
    moved: list[int] = []
    real = os.splice

    def splice(*arguments: int, **options: int) -> int:
        size = real(*arguments, **options)
        if "offset_dst" in options:
            moved.append(size)
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "splice", splice)
        yield moved


def test_what_is_spliced_is_divided_at_the_byte_and_covered_by_the_index(tmp_path: Path) -> None:
    most = 100_001
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, LogOptions(max_bytes=most, max_files=1000))
    writer.append(Stream.STDERR, memoryview(b"beside it"), 1)
    with fed_pipe(NOISE) as pipe, spliced() as moved:
        assert move_all(pipe, writer) == b""
    assert len(NOISE) // 2 < sum(moved) <= len(NOISE)  # what comes just after a look is read
    writer.finish()
    os.close(fd)
    names = [*sorted(path.name for path in tmp_path.glob("stdout.log.*")), "stdout.log"]
    parts = [(tmp_path / name).read_bytes() for name in names]
    assert b"".join(parts) == NOISE
    assert [len(part) for part in parts[:-1]] == [most] * (len(NOISE) // most)
    for name, part in zip(names, parts, strict=True):
        end = 0
        for entry in read_index(str(tmp_path / name.replace("stdout.log", INDEX))):
            if entry.stream is OUT:
                assert entry.offset == end
                end += entry.length
        assert end == len(part)


def test_after_splicing_the_log_is_appended_to_as_before(tmp_path: Path) -> None:
    """Also where somebody has truncated it by hand meanwhile: no hole, and nothing overwritten."""
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, UNBOUNDED)
    log = tmp_path / FILES[OUT]
    writer.append(OUT, memoryview(b"one,"), 1)
    with fed_pipe(b"two,") as pipe:
        move_all(pipe, writer)
    writer.append(OUT, memoryview(b"three,"), 1)
    assert log.read_bytes() == b"one,two,three,"
    os.truncate(log, 0)
    with fed_pipe(b"four,") as pipe, spliced() as moved:
        move_all(pipe, writer)
    assert sum(moved) == 5
    writer.append(OUT, memoryview(b"five"), 1)
    assert log.read_bytes() == b"four,five"
    writer.finish()
    os.close(fd)


def test_an_empty_pipe_and_an_ended_one_are_told_apart(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd)
    read_end, write_end = os.pipe()
    with pytest.raises(BlockingIOError):
        writer.splice(OUT, read_end, 100, 1)
    os.write(write_end, b"abc")
    assert writer.splice(OUT, read_end, 2, 1) == 2
    os.close(write_end)
    assert writer.splice(OUT, read_end, 2, 1) == 1
    assert writer.splice(OUT, read_end, 2, 1) == 0
    os.close(read_end)
    assert (tmp_path / FILES[OUT]).read_bytes() == b"abc"
    writer.finish()
    os.close(fd)


def test_what_cannot_be_spliced_is_left_to_be_read(tmp_path: Path) -> None:
    """A terminal is no pipe: the kernel says EINVAL."""
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd)
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.write(slave, b"abc")
    assert writer.splice(OUT, master, 100, 1) is None
    assert os.read(master, 100) == b"abc"
    assert writer.error is None
    os.close(master)
    os.close(slave)
    writer.finish()
    os.close(fd)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EIO])
def test_where_splice_is_refused_everything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """From the first call on, or from a later one: some filesystems, some seccomp filters."""
    real, calls = os.splice, [0]

    def refuse(*arguments: int, **options: int) -> int:
        if "offset_dst" in options:
            calls[0] += 1
        if calls[0] > 1:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(os, "splice", refuse)
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, UNBOUNDED)
    read_end, write_end = os.pipe()
    os.write(write_end, NOISE[:100])
    assert writer.splice(OUT, read_end, 100, 1) == 100
    os.close(read_end)
    os.close(write_end)
    with fed_pipe(NOISE[100:]) as pipe:
        assert move_all(pipe, writer) == b""
    assert calls[0] == 2
    assert writer.error is None
    assert (tmp_path / FILES[OUT]).read_bytes() == NOISE
    writer.finish()
    os.close(fd)


def fill(path: Path, fd: int) -> tuple[int | None, bool, bool]:
    """(errno, whether every byte is in the log, counted, or still in the pipe, whether in order)"""
    writer = LogWriter(fd, UNBOUNDED)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    sent, unlogged = 0, b""
    with spliced() as moved:
        while not writer.is_lossy():
            sent += os.write(write_end, NOISE[sent : sent + PIPE_BYTES])
            unlogged = move_bulk(read_end, writer, OUT)
    os.set_blocking(write_end, False)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        waiting = pipe.read()
    writer.finish()
    assert len(moved) > 1
    assert len(unlogged) == writer.lost_bytes
    assert writer.error is not None
    logged = (path / FILES[OUT]).read_bytes()
    return (
        writer.error.errno,
        logged + unlogged + waiting == NOISE[:sent],
        writer.lost_bytes > 0,
    )


def test_a_disk_that_is_full_amid_a_splice_costs_what_is_counted(tmp_path: Path) -> None:
    def log() -> tuple[int | None, bool, bool]:
        private_mounts()
        mount_tmpfs(os.fsencode(tmp_path), (b"size", b"200k"))
        return fill(tmp_path, os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))

    assert in_child(log) == (errno.ENOSPC, True, True)


def test_a_limit_on_the_size_of_files_met_amid_a_splice_costs_what_is_counted(
    tmp_path: Path,
) -> None:
    def log() -> tuple[int | None, bool, bool]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_001, 300_001))
        return fill(tmp_path, os.open(tmp_path, os.O_RDONLY))

    assert in_child(log) == (errno.EFBIG, True, True)


@pytest.mark.parametrize("enough", [1, 100_000, 333_333])
def test_a_writer_killed_amid_splicing_loses_and_doubles_nothing(
    tmp_path: Path, enough: int
) -> None:
    """What it had not logged is still in the pipe, for the successor."""
    fd = os.open(tmp_path, os.O_RDONLY)
    options = LogOptions(max_bytes=150_000, max_files=1000)
    with fed_pipe(NOISE) as pipe:
        seen, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                writer = LogWriter(fd, options)
                while True:
                    try:
                        writer.splice(OUT, pipe, 30_000, 1)
                    except BlockingIOError:
                        continue
                    if writer.sizes[OUT] >= enough:
                        os.write(tell, b"x")
            finally:
                os._exit(1)
        os.read(seen, 1)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(seen)
        os.close(tell)
        successor = LogWriter(fd, options, resume=True)
        assert successor.sizes[OUT] >= enough
        move_all(pipe, successor)
        successor.finish()
    os.close(fd)
    names = [*sorted(path.name for path in tmp_path.glob("stdout.log.*")), "stdout.log"]
    assert b"".join((tmp_path / name).read_bytes() for name in names) == NOISE


def test_the_head_of_the_output_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = LogWriter(fd, UNBOUNDED)
    head = writer.head = Head(100_000)
    with fed_pipe(NOISE) as pipe, spliced() as moved:
        move_all(pipe, writer)
    assert head.kept[OUT] == NOISE[:100_000]
    assert head.totals[OUT] == len(NOISE)
    assert 0 < sum(moved) <= len(NOISE) - 100_000
    writer.finish()
    os.close(fd)
