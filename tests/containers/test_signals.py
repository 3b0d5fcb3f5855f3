"""Signals sent to the command line reach the container, and there is always a way out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.streams_helpers import (
    PATIENCE_SECONDS,
    Gate,
    add_noise,
    background,
    cgroups_of,
    children_of,
    digest,
    drain,
    errors_of,
    executed_by,
    ids,
    is_alive,
    metadata,
    noise,
    output_of,
    parent_of,
    read_until,
    running_pid,
    sleeper,
    stat_fields,
    the_container,
    until,
    wait_ended,
    wait_readable,
    wait_stopped,
)

NAMES = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
ENDING = ("INT", "TERM", "HUP", "QUIT")
BLOCK = "mkfifo /tmp/block; cat /tmp/block >/dev/null 2>&1 & "
"""`wait` is what a signal interrupts in a shell; cat blocks for ever, and holds no output open."""


def number_of(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]


def attached(rootfs: Path, script: str) -> tuple[str, ...]:
    """Arguments that run ``script`` in a shell, attached."""
    return ("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)


# --- forwarding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_arrives_inside(rootfs: Path, state_root: Path, name: str) -> None:
    script = f"trap 'echo got {name}; exit 11' {name}; {BLOCK} echo ready; wait"
    with background(state_root, *attached(rootfs, script)) as process:
        read_until(output_of(process), b"ready\n")
        process.send_signal(number_of(name))
        assert drain(output_of(process), errors_of(process)) == [
            digest(f"got {name}\n".encode()),
            digest(b""),
        ]
    assert process.returncode == 11


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_arrives_inside_without_attach(rootfs: Path, state_root: Path, name: str) -> None:
    script = f"trap 'echo got {name}; exit 11' {name}; {BLOCK} echo >/ready; wait"
    run, _, *rest = attached(rootfs, script)
    with Gate(rootfs / "ready") as ready, background(state_root, run, *rest) as process:
        ready.wait()
        process.send_signal(number_of(name))
    assert process.returncode == 11
    assert (the_container(state_root) / "stdout.log").read_text() == f"got {name}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_to_exec_arrives_in_its_command(rootfs: Path, state_root: Path, name: str) -> None:
    script = f"trap 'echo got {name}; exit 11' {name}; {BLOCK} echo ready; wait"
    with sleeper(rootfs, state_root) as container_id:
        arguments = ("exec", container_id, "--", "sh", "-c", script)
        with background(state_root, *arguments) as process:
            read_until(output_of(process), b"ready\n")
            process.send_signal(number_of(name))
            assert drain(output_of(process)) == [digest(f"got {name}\n".encode())]
        assert process.returncode == 11
        assert is_alive(int(metadata(state_root / container_id)["pid"]))


@pytest.mark.parametrize("name", NAMES)
def test_init_forwards_a_signal_to_a_command_that_has_no_handler(
    rootfs: Path, state_root: Path, name: str
) -> None:
    """As PID 1 the command would be deaf to it; below --init it dies of it, and that is told."""
    run, *rest = attached(rootfs, "echo ready; exec cat /block")
    with Gate(rootfs / "block"), background(state_root, run, "--init", *rest) as process:
        read_until(output_of(process), b"ready\n")
        process.send_signal(number_of(name))
    assert process.returncode == 128 + number_of(name)
    assert metadata(the_container(state_root))["exit_code"] == 128 + number_of(name)


# --- insisting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENDING)
def test_insisting_on_a_signal_kills_a_container_that_does_not_end(
    rootfs: Path, state_root: Path, name: str
) -> None:
    """The second one within a second kills; the container answers each but never ends by itself."""
    script = f"trap 'echo again' {name}; {BLOCK} echo again; while :; do wait; done"
    with background(state_root, *attached(rootfs, script)) as process:
        insist(process, number_of(name))
    assert process.returncode == 137
    record = metadata(the_container(state_root))
    assert (record["exit_code"], record["signal"]) == (137, signal.SIGKILL)


def insist(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal whenever ``process`` says something, until it has nothing more to say."""
    while os.read(output_of(process), 65536):
        process.send_signal(number)


def test_insisting_on_a_signal_kills_an_exec_that_does_not_end(
    rootfs: Path, state_root: Path
) -> None:
    script = f"trap 'echo again' INT; {BLOCK} echo again; while :; do wait; done"
    with sleeper(rootfs, state_root) as container_id:
        arguments = ("exec", container_id, "--", "sh", "-c", script)
        with background(state_root, *arguments) as process:
            insist(process, signal.SIGINT)
        assert process.returncode == 137
        assert is_alive(int(metadata(state_root / container_id)["pid"]))


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_user_signals_never_kill_however_often_they_come(
    rootfs: Path, state_root: Path, name: str
) -> None:
    """They mean what the program makes of them: two in a row are two of them."""
    script = (
        f"n=0; trap 'n=$((n+1)); echo $n' {name}; {BLOCK} echo ready; "
        "while [ $n -lt 5 ]; do wait; done; exit 5"
    )
    with background(state_root, *attached(rootfs, script)) as process:
        insist(process, number_of(name))
    assert process.returncode == 5


# --- a way out while a reader is stopped --------------------------------------------------------


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_after_the_end_frees_us_from_a_stopped_reader(
    rootfs: Path, state_root: Path, name: str
) -> None:
    add_noise(rootfs, 2**20)
    with background(state_root, *attached(rootfs, "cat /out.bin; exit 6")) as process:
        directory = wait_stopped(state_root)
        assert process.poll() is None, "it left with output that nobody had read"
        process.send_signal(number_of(name))
        process.wait(60)
        assert drain(errors_of(process)) == [digest(b"")]
    assert process.returncode == 6
    assert digest((directory / "stdout.log").read_bytes()) == digest(noise(1, 2**20))


@pytest.mark.no_server
def test_a_signal_after_the_end_of_an_exec_frees_us_from_a_stopped_reader(
    rootfs: Path, state_root: Path
) -> None:
    """What the two pipes hold between them is all that it wrote, so it could end."""
    add_noise(rootfs, 100_000)
    script = "read x </go; cat /out.bin; exit 6"
    with Gate(rootfs / "go") as go, sleeper(rootfs, state_root) as container_id:
        arguments = ("exec", container_id, "--", "sh", "-c", f"echo >/here; {script}")
        with Gate(rootfs / "here") as here, background(state_root, *arguments) as process:
            here.wait()
            (keeper,) = children_of(process.pid)
            inside = executed_by(keeper)
            go.open()
            wait_ended(inside)
            assert process.poll() is None, "it left with output that nobody had read"
            press_until_ended(process, signal.SIGTERM)
            assert drain(errors_of(process)) == [digest(b"")]
        assert process.returncode == 6


def press_until_ended(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal until ``process`` has ended; at first it may not know yet what has ended."""
    for _ in range(40):
        process.send_signal(number)
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        return
    pytest.fail("there is no way out")


# --- Ctrl-C on a terminal -----------------------------------------------------------------------


@contextmanager
def in_terminal(state_root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Our command line as the foreground job of a terminal; also that terminal's other end."""
    master, slave = os.openpty()
    try:
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        before = ("setsid", "--ctty")
        with background(state_root, *arguments, before=before, **streams) as process:
            yield process, master
    finally:
        os.close(master)
        os.close(slave)


def test_control_c_reaches_the_container_once_and_not_the_keeper(
    rootfs: Path, state_root: Path
) -> None:
    """The terminal signals the whole process group; only the command line is in it."""
    script = f"trap 'echo caught' INT; {BLOCK} echo ready; wait; echo >/woken; read x </go; exit 8"
    with (
        Gate(rootfs / "woken") as woken,
        Gate(rootfs / "go") as go,
        in_terminal(state_root, *attached(rootfs, script)) as (process, master),
    ):
        read_until(master, b"ready\r\n")
        container = running_pid(the_container(state_root))
        keeper = parent_of(container)
        for pid in (keeper, container):
            assert stat_fields(pid)[3] != stat_fields(process.pid)[3], "same session"
            assert stat_fields(pid)[4] == b"0", "has the terminal"
        os.write(master, b"\x03")
        woken.wait()
        assert is_alive(keeper)
        go.open()
        assert process.wait(60) == 8
        # Once told how to insist, and once caught.
        shown = read_until(master, b"caught\r\n")
        assert shown.count(b"caught") == 1
    assert (the_container(state_root) / "stdout.log").read_text() == "ready\ncaught\n"
    assert metadata(the_container(state_root))["exit_code"] == 8


def test_control_c_twice_kills_a_container_that_ignores_it(rootfs: Path, state_root: Path) -> None:
    """The first one tells how; the second one does it."""
    script = "trap '' INT; echo ready; read x </block"
    with (
        Gate(rootfs / "block"),
        in_terminal(state_root, *attached(rootfs, script)) as (process, master),
    ):
        read_until(master, b"ready\r\n")
        pidfd = os.pidfd_open(process.pid)
        os.write(master, b"\x03")
        while pidfd not in wait_readable(master, pidfd):
            if b"press Ctrl-C twice" in os.read(master, 65536):
                os.write(master, b"\x03")
        os.close(pidfd)
        assert process.wait(60) == 137


# --- during start-up ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [True, False], ids=["group", "process"])
@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_at_any_moment_of_the_start_leaves_nothing_half_made(
    rootfs: Path, state_root: Path, name: str, to_group: bool
) -> None:
    """To the group, as Ctrl-C is, it also finds a keeper that has no session of its own yet."""
    moments = random.Random(f"{name} {to_group}")
    arguments = ("run", "-a", "--rootfs", str(rootfs), "--", "true")
    for _ in range(12):
        with background(state_root, *arguments, start_new_session=True) as process:
            # No synchronisation: the moment is what this test varies.
            time.sleep(moments.uniform(0.02, 0.3))
            if process.poll() is None:
                (os.killpg if to_group else os.kill)(process.pid, number_of(name))
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        if process.returncode == 1 and b"craterun/__main__.py" not in errors:
            continue  # Python itself was still starting: not a line of ours had run
        allowed = (0, -number_of(name), 128 + number_of(name), 125)
        assert process.returncode in allowed, errors.decode()
    for container_id in ids(state_root):
        assert metadata(state_root / container_id)["status"] == "stopped"
        assert cgroups_of(container_id) == []


@pytest.mark.no_server
def test_a_signal_while_the_container_is_being_made_reaches_it(
    rootfs: Path, state_root: Path
) -> None:
    """It comes as soon as the folder is there, long before the command is executed."""
    state_root.mkdir()
    arguments = ("run", "-a", "--init", "--rootfs", str(rootfs), "--", "cat", "/block")
    with Gate(rootfs / "block"), background(state_root, *arguments) as process:
        until(state_root, lambda: ids(state_root))
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    directory = the_container(state_root)
    assert metadata(directory)["exit_code"] == 128 + signal.SIGTERM
    assert cgroups_of(directory.name) == []
