"""Every byte of output arrives, attached and in the log, whatever its amount and reader."""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from craterun import Container, ExitStatus, Spec, Stream, Supervisor
from craterun.core.logoptions import LogOptions
from tests.conftest import CommandLine
from tests.containers.streams_helpers import (
    Digest,
    Gate,
    add_noise,
    background,
    check_log,
    digest,
    drain,
    errors_of,
    noise,
    output_of,
    read_until,
    the_container,
    wait_stopped,
)

SIZES = sorted({2**k + delta for k in range(25) for delta in (-1, 0, 1)})
SOME_SIZES = (0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 2**20 + 1)
PIPE_BYTES = 65536
BOTH_AT_ONCE = (
    "head -c {0} /out.bin & head -c {0} /err.bin >&2; wait $!; result=$?; wait; exit $result"
)


def write_both(rootfs: Path, size: int) -> tuple[str, ...]:
    """Command line arguments of a container that writes ``size`` bytes on both streams at once."""
    script = BOTH_AT_ONCE.format(size)
    return ("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)


def read_fast(process: subprocess.Popen[bytes], state_root: Path, size: int) -> list[Digest]:
    return drain(output_of(process), errors_of(process))


def read_slowly(process: subprocess.Popen[bytes], state_root: Path, size: int) -> list[Digest]:
    """In small pieces of odd length: the pipe is full all the time."""
    return drain(output_of(process), errors_of(process), read_bytes=1009)


def read_after_the_end(
    process: subprocess.Popen[bytes], state_root: Path, size: int
) -> list[Digest]:
    """Not at all before the container's end is on record."""
    wait_stopped(state_root)
    if size > PIPE_BYTES:
        assert process.poll() is None, "it left with output that nobody had read"
    return drain(output_of(process), errors_of(process))


Reading = Callable[[subprocess.Popen[bytes], Path, int], list[Digest]]


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_fast, read_slowly, read_after_the_end])
def test_both_streams_are_exact_at_every_size(
    rootfs: Path, state_root: Path, read: Reading
) -> None:
    """Sizes around every power of two up to 16 MiB: moby#49655, cli#4338, moby#45689."""
    add_noise(rootfs)

    def run(size: int) -> None:
        root = state_root / str(size)
        root.mkdir(parents=True)
        with background(root, *write_both(rootfs, size)) as process:
            received = read(process, root, size)
        out, err = memoryview(noise(1))[:size], memoryview(noise(2))[:size]
        assert received == [digest(out), digest(err)], size
        assert process.returncode == 0
        check_log(the_container(root), out, err)
        shutil.rmtree(root)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, SIZES))


async def test_every_reader_gets_every_byte_however_late_it_comes(
    rootfs: Path, state_root: Path
) -> None:
    content, _ = add_noise(rootfs, 2**20 + 1)
    received: list[Digest] = []

    async def read(container: Container) -> None:
        reader, data = container.follow(Stream.STDOUT), b""
        while chunk := await reader.receive():
            data += chunk
        reader.close()
        received.append(digest(data))

    with Gate(rootfs / "written") as written, Gate(rootfs / "go") as go:
        script = "cat /out.bin; echo >/written; read x </go; exit 6"
        async with Supervisor(state_root) as supervisor, trio.open_nursery() as readers:
            container = await supervisor.start(
                Spec(rootfs=str(rootfs), command=("sh", "-c", script))
            )
            for _ in range(3):
                readers.start_soon(read, container)
            await trio.to_thread.run_sync(written.wait)
            readers.start_soon(read, container)
            go.open()
            assert await container.wait() == ExitStatus(6)
    assert received == [digest(content)] * 4
    check_log(the_container(state_root), content, b"")


async def test_a_reader_that_comes_after_the_end_gets_what_is_kept(
    rootfs: Path, state_root: Path
) -> None:
    content, _ = add_noise(rootfs, 300_000)

    async def read(container: Container) -> tuple[bytes, int]:
        reader, data = container.follow(Stream.STDOUT), b""
        while chunk := await reader.receive():
            data += chunk
        reader.close()
        return data, reader.skipped_bytes

    spec = Spec(rootfs=str(rootfs), command=("cat", "/out.bin"))
    rotated = msgspec.structs.replace(spec, log=LogOptions(max_bytes=100_000, max_files=2))
    async with Supervisor(state_root) as supervisor:
        container = await supervisor.start(spec)
        await container.wait()
        assert await read(container) == (content, 0)
        await container.remove()
        assert await read(container) == (b"", len(content))
        container = await supervisor.start(rotated)
        await container.wait()
        data, skipped = await read(container)
        assert 0 < skipped < len(content)
        assert data == content[skipped:]


# --- other things than pipes --------------------------------------------------------------------


@pytest.mark.parametrize("size", SOME_SIZES)
def test_a_socket_gets_every_byte(rootfs: Path, state_root: Path, size: int) -> None:
    out, err = add_noise(rootfs, size)
    ours, theirs = socket.socketpair()
    with ours, theirs, background(state_root, *write_both(rootfs, size), stdout=theirs) as process:
        theirs.close()
        received = drain(ours.fileno(), errors_of(process))
    assert (process.returncode, received) == (0, [digest(out), digest(err)])
    check_log(the_container(state_root), out, err)


@pytest.mark.parametrize("mode", ["wb", "ab"])  # the kernel copies to the one, and not the other
@pytest.mark.parametrize("size", SOME_SIZES)
def test_a_regular_file_gets_every_byte(
    craterun: CommandLine, rootfs: Path, state_root: Path, tmp_path: Path, size: int, mode: str
) -> None:
    out, err = add_noise(rootfs, size)
    with open(tmp_path / "out", mode) as stdout, open(tmp_path / "err", mode) as stderr:
        result = craterun(*write_both(rootfs, size), stdout=stdout, stderr=stderr)
    assert result.returncode == 0
    received = [digest((tmp_path / name).read_bytes()) for name in ("out", "err")]
    assert received == [digest(out), digest(err)]
    check_log(the_container(state_root), out, err)


@pytest.mark.parametrize("size", SOME_SIZES)
def test_a_terminal_gets_every_byte(rootfs: Path, state_root: Path, size: int) -> None:
    out, err = add_noise(rootfs, size)
    arguments = write_both(rootfs, size)
    with (
        raw_terminal() as (master, slave),
        background(state_root, *arguments, stdout=slave) as process,
    ):
        received = b""
        while len(received) < size:
            received += os.read(master, 65536)
        (errors,) = drain(errors_of(process))
    assert (process.returncode, digest(received), errors) == (0, digest(out), digest(err))
    check_log(the_container(state_root), out, err)


def test_one_file_for_both_streams_gets_every_byte_of_each(
    craterun: CommandLine, rootfs: Path, state_root: Path, tmp_path: Path
) -> None:
    """As by ``>file 2>&1``: one open file, so neither stream overwrites the other."""
    (rootfs / "out.bin").write_bytes(b"o" * 300_000)
    (rootfs / "err.bin").write_bytes(b"e" * 200_000)
    with open(tmp_path / "both", "wb") as both:
        result = craterun(*write_both(rootfs, 300_000), stdout=both, stderr=both)
    assert result.returncode == 0
    assert sorted((tmp_path / "both").read_bytes()) == sorted(b"o" * 300_000 + b"e" * 200_000)
    check_log(the_container(state_root), b"o" * 300_000, b"e" * 200_000)


def test_a_file_is_appended_to_where_the_shell_left_it(
    craterun: CommandLine, rootfs: Path, tmp_path: Path
) -> None:
    """Like ``{ echo before; craterun …; } >file``: nothing is truncated, no offset is reset."""
    with open(tmp_path / "out", "wb", buffering=0) as stdout:
        stdout.write(b"before\n")
        craterun("run", "-a", "--rootfs", str(rootfs), "--", "echo", "inside", stdout=stdout)
        stdout.write(b"after\n")
    assert (tmp_path / "out").read_bytes() == b"before\ninside\nafter\n"


@contextmanager
def raw_terminal() -> Iterator[tuple[int, int]]:
    """(master, slave) of a terminal that passes all bytes on as they are."""
    master, slave = pty.openpty()
    try:
        tty.setraw(slave)
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


# --- logs without a reader ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65537, 2**22 + 1])
def test_output_without_attach_is_in_the_log_only(
    craterun: CommandLine, rootfs: Path, state_root: Path, size: int
) -> None:
    out, err = add_noise(rootfs, size)
    _, _, *rest = write_both(rootfs, size)
    result = craterun("run", *rest)
    directory = the_container(state_root)
    assert result.stdout.decode() == f"{directory.name}\n"
    assert (result.returncode, result.stderr) == (0, b"")
    check_log(directory, out, err)


def test_the_logs_command_prints_both_streams_byte_for_byte(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    out, err = add_noise(rootfs, 2**20 + 1)
    _, _, *rest = write_both(rootfs, 2**20 + 1)
    container_id = craterun("run", *rest).stdout.decode().strip()
    printed = craterun("logs", container_id)
    assert (printed.returncode, digest(printed.stdout)) == (0, digest(out))
    assert digest(printed.stderr) == digest(err)


def test_output_without_a_newline_arrives_while_the_container_runs(
    rootfs: Path, state_root: Path
) -> None:
    script = "printf 'password: '; read x; echo got $x"
    arguments = ("run", "-a", "-i", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    with background(state_root, *arguments, stdin=subprocess.PIPE) as process:
        assert read_until(output_of(process), b": ") == b"password: "
        assert process.stdin is not None
        os.write(process.stdin.fileno(), b"secret\n")
        assert read_until(output_of(process), b"\n") == b"got secret\n"
    check_log(the_container(state_root), b"password: got secret\n", b"")
