"""run --detach: back as soon as the command runs, and nothing of the caller is held on to."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import CommandLine, cli_environment
from tests.containers.streams_helpers import (
    Gate,
    add_noise,
    background,
    cgroups_of,
    check_log,
    command,
    drain,
    errors_of,
    ids,
    is_alive,
    metadata,
    output_of,
    parent_of,
    read_until,
    running_pid,
    stat_fields,
)


def detached(rootfs: Path, script: str, *options: str) -> tuple[str, ...]:
    """Arguments that run ``script`` in a shell, in the background."""
    return ("run", "--detach", *options, "--rootfs", str(rootfs), "--", "sh", "-c", script)


# --- returning ----------------------------------------------------------------------------------


def test_it_returns_when_the_command_was_executed(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    with Gate(rootfs / "go") as go:
        result = craterun(*detached(rootfs, "read x </go; exit 3"))
        container_id = result.stdout.decode().strip()
        assert ids(state_root) == [container_id]
        assert (result.returncode, result.stderr) == (0, b"")
        record = metadata(state_root / container_id)
        assert (record["status"], record["exit_code"]) == ("running", None)
        assert os.readlink(f"/proc/{record['pid']}/exe").endswith("/busybox")
        assert is_alive(record["pid"])
        go.open()
        assert craterun("wait", container_id).stdout == b"3\n"
    assert metadata(state_root / container_id)["status"] == "stopped"
    assert cgroups_of(container_id) == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("no-such-command",), 127, b"no-such-command"),
        (("/etc",), 126, b"/etc"),
        (("/etc/passwd",), 126, b"/etc/passwd"),
    ],
)
def test_a_command_that_does_not_execute_is_told_in_the_foreground(
    craterun: CommandLine,
    rootfs: Path,
    state_root: Path,
    arguments: tuple[str, ...],
    code: int,
    text: bytes,
) -> None:
    result = craterun("run", "--detach", "--rootfs", str(rootfs), "--", *arguments)
    assert (result.returncode, result.stdout) == (code, b"")
    assert result.stderr.startswith(b"craterun: ")
    assert text in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert ids(state_root) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--rootfs", "/nowhere"), b"/nowhere"),
        (("--rootfs", "/"), b"rootfs"),
        (("--workdir", "/missing"), b"/missing"),
        (("--user", "nobody-here"), b"nobody-here"),
        (("--name", "../up"), b"name"),
    ],
)
def test_an_error_of_ours_is_told_in_the_foreground(
    craterun: CommandLine,
    rootfs: Path,
    state_root: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    text: bytes,
) -> None:
    where = () if "--rootfs" in options else ("--rootfs", str(rootfs))
    cidfile = tmp_path / "cid"
    result = craterun("run", "-d", "--cidfile", str(cidfile), *where, *options, "--", "true")
    assert (result.returncode, result.stdout) == (125, b"")
    assert result.stderr.startswith(b"craterun: ")
    assert text in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert ids(state_root) == []
    assert not cidfile.exists()


def test_a_name_in_use_is_told_in_the_foreground(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    craterun(*detached(rootfs, "true", "--name", "taken"))
    result = craterun(*detached(rootfs, "true", "--name", "taken"))
    assert (result.returncode, result.stdout) == (125, b"")
    assert b"taken" in result.stderr
    assert len(ids(state_root)) == 1
    assert craterun("wait", "taken").stdout == b"0\n"


def test_the_cidfile_holds_the_id(craterun: CommandLine, rootfs: Path, tmp_path: Path) -> None:
    arguments = detached(rootfs, "exit 4", "--cidfile", str(tmp_path / "cid"))
    printed = craterun(*arguments).stdout.decode().strip()
    assert (tmp_path / "cid").read_text() == printed
    assert craterun("wait", printed).stdout == b"4\n"


# --- holding on to nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["unlimited", "64"])
def test_supervisor_and_keeper_have_no_terminal_and_nothing_of_ours(
    rootfs: Path, state_root: Path, tmp_path: Path, limit: str
) -> None:
    """Descriptors given to the command line, even above its limit of open files, stay with it."""
    with ExitStack() as stack, Gate(rootfs / "go") as go:
        files = [stack.enter_context(open(tmp_path / f"ours{n}", "wb")) for n in range(4)]
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        high = os.dup2(writer, 200, inheritable=False)
        os.close(writer)
        inherited = [*(file.fileno() for file in files), high]
        script = f'ulimit -n {"1024" if limit == "unlimited" else limit}; exec "$@"'
        result = subprocess.run(
            ["bash", "-c", script, "bash", *command(*detached(rootfs, "read x </go"))],
            env=cli_environment(state_root),
            pass_fds=inherited,
            capture_output=True,
            cwd=tmp_path,
            check=True,
        )
        os.close(high)
        container_id = result.stdout.decode().strip()
        keeper = parent_of(running_pid(state_root / container_id))
        supervisor = parent_of(keeper)
        for pid in (supervisor, keeper):
            session, terminal = stat_fields(pid)[3:5]
            assert (int(session), terminal) == (pid, b"0")
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
            assert [os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)] == ["/dev/null"] * 3
            assert not [link for link in links if link.startswith(f"{tmp_path}/ours")]
        # The strongest form: the pipe whose write end was passed on has no writer any more.
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
        go.open()
        wait = subprocess.run(
            command("wait", container_id), env=cli_environment(state_root), check=True
        )
        assert wait.returncode == 0


def test_a_foreground_keeper_inherits_nothing_but_its_socket(
    rootfs: Path, state_root: Path, tmp_path: Path
) -> None:
    with open(tmp_path / "ours", "wb") as ours, Gate(rootfs / "go") as go:
        script = "echo ready; read x </go"
        arguments = ("run", "-a", "--rootfs", str(rootfs), "--", "sh", "-c", script)
        with background(state_root, *arguments, pass_fds=[ours.fileno()]) as process:
            read_until(output_of(process), b"ready\n")
            (container_id,) = ids(state_root)
            keeper = parent_of(running_pid(state_root / container_id))
            assert parent_of(keeper) == process.pid
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{keeper}/fd")]
            assert str(tmp_path / "ours") not in links
            assert not [link for link in links if link.startswith("/dev/") and link != "/dev/null"]
            assert os.readlink(f"/proc/{keeper}/cwd") == "/"
            go.open()


def test_a_container_outlives_the_terminal_it_was_started_from(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    """Its logs are whole at the end, though nobody of its beginning is left."""
    out, err = add_noise(rootfs, 2**20 + 1)
    script = "cat /out.bin; cat /err.bin >&2; read x </go; echo last; exit 7"
    master, slave = os.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    line = " ".join(f"'{word}'" for word in command(*detached(rootfs, script)))
    with Gate(rootfs / "go") as go:
        shell = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", f"{line}; read x"],
            env=cli_environment(state_root),
            **streams,  # type: ignore[call-overload]
        )
        os.close(slave)
        container_id = read_until(master, b"\n").decode().strip()
        os.close(master)  # the terminal goes, and with it, by SIGHUP, everything that lives in it
        assert shell.wait() == -signal.SIGHUP
        assert is_alive(metadata(state_root / container_id)["pid"])
        go.open()
        assert craterun("wait", container_id).stdout == b"7\n"
    check_log(state_root / container_id, out + b"last\n", err)


# --- waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--rm",)])
def test_every_waiter_gets_the_exit_code(
    rootfs: Path, state_root: Path, options: tuple[str, ...]
) -> None:
    """`wait` raced with --rm in podman#25479, #24208, #1640."""
    env = cli_environment(state_root)
    with Gate(rootfs / "go") as go, ExitStack() as stack:
        started = subprocess.run(
            command(*detached(rootfs, "read x </go; exit 9", *options)),
            env=env,
            capture_output=True,
            check=True,
        )
        container_id = started.stdout.decode().strip()
        waiters = [
            stack.enter_context(background(state_root, "wait", container_id)) for _ in range(5)
        ]
        blocked = [process for process in waiters if process.poll() is None]
        assert blocked == waiters, "some did not wait"
        go.open()
        for process in waiters:
            assert read_until(output_of(process), b"\n") == b"9\n"
            drain(errors_of(process))
            assert process.wait() == 0
    assert (ids(state_root) == []) == bool(options)


def test_the_code_of_a_container_that_removed_itself_is_known_later(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    started = craterun(*detached(rootfs, "exit 9", "--rm"))
    container_id = started.stdout.decode().strip()
    assert craterun("wait", container_id).stdout == b"9\n"
    assert craterun("wait", container_id).stdout == b"9\n"
    assert ids(state_root) == []
    unknown = craterun("wait", "0123456789abcdef")
    assert (unknown.returncode, unknown.stdout) == (125, b"")


def test_wait_prints_codes_in_the_order_asked_for(craterun: CommandLine, rootfs: Path) -> None:
    def start(number: int) -> str:
        return craterun(*detached(rootfs, f"exit {number}")).stdout.decode().strip()

    with ThreadPoolExecutor(4) as threads:
        containers = list(threads.map(start, range(4)))
    assert craterun("wait", *reversed(containers)).stdout == b"3\n2\n1\n0\n"
