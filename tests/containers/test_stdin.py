"""What a container reads: our stdin with -i, to its last byte and its end; /dev/null without."""

from __future__ import annotations

import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import CommandLine, cli_environment
from tests.containers.streams_helpers import (
    PATIENCE_SECONDS,
    Gate,
    background,
    check_log,
    command,
    digest,
    drain,
    errors_of,
    noise,
    output_of,
    read_until,
    sleeper,
    the_container,
)

LARGE = noise(3, 2**24 + 1)


def interactive(rootfs: Path, *arguments: str) -> tuple[str, ...]:
    """Arguments that run a command attached and with our stdin."""
    return ("run", "-i", "--attach", "--rootfs", str(rootfs), "--", *arguments)


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, len(LARGE)])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_all_of_stdin_arrives(
    craterun: CommandLine, rootfs: Path, state_root: Path, tmp_path: Path, kind: str, size: int
) -> None:
    data = LARGE[:size]
    if kind == "pipe":
        result = craterun(*interactive(rootfs, "cat"), input=data)
    else:
        (tmp_path / "input").write_bytes(data)
        with open(tmp_path / "input", "rb") as file:
            result = craterun(*interactive(rootfs, "cat"), stdin=file)
    assert (result.returncode, result.stderr) == (0, b"")
    assert digest(result.stdout) == digest(data)
    check_log(the_container(state_root), data, b"")


def test_a_file_is_read_from_where_the_shell_left_it(
    craterun: CommandLine, rootfs: Path, tmp_path: Path
) -> None:
    (tmp_path / "input").write_bytes(b"skipped\nread\n")
    with open(tmp_path / "input", "rb", buffering=0) as file:
        file.read(8)
        assert craterun(*interactive(rootfs, "cat"), stdin=file).stdout == b"read\n"


def test_stdin_without_attach_reaches_the_log(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    run, option, _, *rest = interactive(rootfs, "cat")
    result = craterun(run, option, *rest, input=LARGE)
    directory = the_container(state_root)
    assert (result.returncode, result.stdout.decode()) == (0, f"{directory.name}\n")
    check_log(directory, LARGE, b"")


def test_an_empty_stdin_is_seen_as_its_end(craterun: CommandLine, rootfs: Path) -> None:
    result = craterun(*interactive(rootfs, "sh", "-c", "cat; echo over"), stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stdout) == (0, b"over\n")


def test_a_closed_stdin_is_seen_as_its_end(rootfs: Path, state_root: Path) -> None:
    result = subprocess.run(
        [
            "sh",
            "-c",
            '"$@" <&-',
            "sh",
            *command(*interactive(rootfs, "sh", "-c", "cat; echo over")),
        ],
        env=cli_environment(state_root),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"over\n", b"")


def test_input_arrives_as_it_comes_and_its_end_when_it_ends(rootfs: Path, state_root: Path) -> None:
    arguments = interactive(rootfs, "sh", "-c", "read x; echo got $x; cat; echo over; exit 5")
    with background(state_root, *arguments, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        os.write(process.stdin.fileno(), b"first\n")
        assert read_until(output_of(process), b"\n") == b"got first\n"
        os.write(process.stdin.fileno(), b"second\n")
        assert read_until(output_of(process), b"\n") == b"second\n"
        process.stdin.close()
        assert read_until(output_of(process), b"\n") == b"over\n"
    assert process.returncode == 5


def test_a_terminal_gives_lines_and_control_d_ends_them(rootfs: Path, state_root: Path) -> None:
    master, slave = pty.openpty()
    try:
        arguments = interactive(rootfs, "sh", "-c", "cat; echo over")
        with background(state_root, *arguments, stdin=slave) as process:
            os.write(master, b"typed\n")
            assert read_until(output_of(process), b"\n") == b"typed\n"
            os.write(master, b"\x04")
            assert read_until(output_of(process), b"\n") == b"over\n"
        assert process.returncode == 0
    finally:
        os.close(master)
        os.close(slave)


# --- containers that do not read ----------------------------------------------------------------


def test_a_container_that_does_not_read_ends_while_stdin_stays_open(
    rootfs: Path, state_root: Path
) -> None:
    arguments = interactive(rootfs, "sh", "-c", "exit 7")
    with background(state_root, *arguments, stdin=subprocess.PIPE) as process:
        # The exit of `background` waits for the end, and only then closes the pipe.
        assert drain(output_of(process), errors_of(process)) == [digest(b"")] * 2
    assert process.returncode == 7


def test_a_container_ends_although_much_input_is_left(rootfs: Path, state_root: Path) -> None:
    """Its pipe and ours are both full when it leaves."""
    arguments = interactive(rootfs, "sh", "-c", "read x </go; exit 7")
    with (
        Gate(rootfs / "go") as go,
        background(state_root, *arguments, stdin=subprocess.PIPE) as process,
        ThreadPoolExecutor(1) as thread,
    ):
        assert process.stdin is not None
        writing = thread.submit(write_all, process.stdin.fileno(), LARGE)
        go.open()
        assert drain(output_of(process), errors_of(process)) == [digest(b"")] * 2
        assert process.wait(PATIENCE_SECONDS) == 7
        assert writing.result(PATIENCE_SECONDS) is False, "somebody took 16 MiB that nobody read"


def test_a_container_that_closes_its_stdin_goes_on(rootfs: Path, state_root: Path) -> None:
    arguments = interactive(
        rootfs, "sh", "-c", "read x; echo got $x; exec </dev/null; read x </go; echo later; exit 7"
    )
    with (
        Gate(rootfs / "go") as go,
        background(state_root, *arguments, stdin=subprocess.PIPE) as process,
        ThreadPoolExecutor(1) as thread,
    ):
        assert process.stdin is not None
        writing = thread.submit(write_all, process.stdin.fileno(), b"line\n" + LARGE)
        assert read_until(output_of(process), b"\n") == b"got line\n"
        go.open()
        assert read_until(output_of(process), b"\n") == b"later\n"
        assert process.wait(PATIENCE_SECONDS) == 7
        assert writing.result(PATIENCE_SECONDS) is False
    check_log(the_container(state_root), b"got line\nlater\n", b"")


def write_all(fd: int, data: bytes) -> bool:
    """Write everything; False if the reader left before."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        return False
    return True


# --- without -i ---------------------------------------------------------------------------------


def test_without_interactive_stdin_is_null_and_ours_is_not_touched(
    craterun: CommandLine, rootfs: Path
) -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"for somebody else\n")
        script = "readlink /proc/self/fd/0; stat -c %t:%T /dev/null; cat; echo over"
        arguments = ("run", "-a", "--rootfs", str(rootfs), "--", "sh", "-c", script)
        result = craterun(*arguments, stdin=read_end)
        assert (result.returncode, result.stdout) == (0, b"/dev/null\n1:3\nover\n")
        assert os.read(read_end, 100) == b"for somebody else\n"
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("user", ["root", "alice"])
def test_the_streams_can_be_reopened_inside(craterun: CommandLine, rootfs: Path, user: str) -> None:
    """A long-standing complaint about docker: the pipes belonged to root."""
    script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr"
    run, *rest = interactive(rootfs, "sh", "-c", script)
    result = craterun(run, "--user", user, *rest, input=b"in\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"in\nout\n", b"err\n")


# --- exec ---------------------------------------------------------------------------------------


def test_exec_feeds_all_of_stdin(craterun: CommandLine, rootfs: Path, state_root: Path) -> None:
    with sleeper(rootfs, state_root) as container_id:
        result = craterun("exec", "-i", container_id, "--", "cat", input=LARGE)
    assert (result.returncode, result.stderr) == (0, b"")
    assert digest(result.stdout) == digest(LARGE)


def test_exec_without_interactive_reads_null(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    with sleeper(rootfs, state_root) as container_id:
        arguments = ("exec", container_id, "--", "sh", "-c", "cat; echo over")
        assert craterun(*arguments, input=b"unread").stdout == b"over\n"


def test_exec_ends_while_stdin_stays_open(rootfs: Path, state_root: Path) -> None:
    with sleeper(rootfs, state_root) as container_id:
        arguments = ("exec", "-i", container_id, "--", "sh", "-c", "exit 7")
        with background(state_root, *arguments, stdin=subprocess.PIPE) as process:
            assert drain(output_of(process), errors_of(process)) == [digest(b"")] * 2
    assert process.returncode == 7
