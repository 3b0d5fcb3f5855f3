"""`kill -9` of every process of ours, at every stage: what can survive does, and nothing leaks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from craterun.state.logs import Stream
from tests.conftest import CommandLine, cli_environment
from tests.containers.streams_helpers import (
    LAUNCH_MANY,
    PATIENCE_SECONDS,
    Gate,
    add_noise,
    background,
    cgroups_of,
    check_log,
    children_of,
    command,
    common_prefix,
    digest,
    errors_of,
    executed_by,
    ids,
    index_ends,
    is_alive,
    metadata,
    parent_of,
    read_until,
    running_pid,
    sleeper,
    successor_of,
    the_container,
    until,
    wait_ended,
    wait_readable,
)

SIZE = 2**20 + 1
HOLE_BYTES = 256 * 1024
"""What a supervisor may have read and not yet written when it is killed: its buffer."""


class Live(NamedTuple):
    """A running container and the processes of ours around it."""

    directory: Path
    pid: int
    keeper: int
    supervisor: int
    process: subprocess.Popen[bytes]

    @property
    def errors(self) -> int:
        """The command line's stderr."""
        return errors_of(self.process)


@contextmanager
def live(rootfs: Path, state_root: Path, kind: str, script: str, *options: str) -> Iterator[Live]:
    """``script`` in a container, in the foreground (attached) or detached; all of it at work."""
    inside = ("--rootfs", str(rootfs), "--", "sh", "-c", f"echo >/up; {script}")
    state_root.mkdir(exist_ok=True)
    how = "--attach" if kind == "foreground" else "--detach"
    with (
        Gate(rootfs / "up") as up,
        background(state_root, "run", how, *options, *inside) as process,
    ):
        up.wait()
        if kind == "detached":
            process.wait(PATIENCE_SECONDS)
        directory = the_container(state_root)
        pid = running_pid(directory)
        keeper = parent_of(pid)
        yield Live(directory, pid, keeper, parent_of(keeper), process)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def logged(directory: Path, out: int, err: int = 0) -> None:
    """Until so many bytes of each stream are in the log and in its index."""
    goal = {Stream.STDOUT: out, Stream.STDERR: err}
    until(directory, lambda: index_ends(directory) == goal)


def check_ended(live: Live, code: int | None) -> None:
    """It is on record as stopped with ``code``, and nothing is left of it on the host."""
    record = metadata(live.directory)
    assert (record["status"], record["exit_code"]) == ("stopped", code)
    assert not is_alive(live.pid)
    assert cgroups_of(live.directory.name) == []


FOREGROUND_AND_DETACHED = pytest.mark.parametrize("kind", ["foreground", "detached"])


# --- the supervisor -----------------------------------------------------------------------------


@FOREGROUND_AND_DETACHED
def test_killing_the_supervisor_costs_neither_output_nor_exit_code(
    craterun: CommandLine, rootfs: Path, state_root: Path, kind: str
) -> None:
    """What was logged stays, what comes later is logged by a successor (podman#439, moby#23213)."""
    out, err = add_noise(rootfs, SIZE)
    both = "cat /out.bin; cat /err.bin >&2"
    with Gate(rootfs / "go") as go:
        with live(rootfs, state_root, kind, f"{both}; read x </go; {both}; exit 5") as it:
            logged(it.directory, SIZE, SIZE)
            kill(it.supervisor)
            wait_ended(it.supervisor)
            assert b" running " in craterun("ps").stdout
            assert craterun("rm", it.directory.name).returncode == 125
            go.open()
            assert craterun("wait", it.directory.name).stdout == b"5\n"
        check_ended(it, 5)
        check_log(it.directory, out * 2, err * 2)
        assert metadata(it.directory)["error"] is None
        wait_ended(it.keeper)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killing_the_supervisor_in_full_flow_loses_at_most_its_buffer(
    craterun: CommandLine, rootfs: Path, state_root: Path, seed: int
) -> None:
    """The log is the output without one piece, no longer than what a single read takes."""
    out = add_noise(rootfs)[0] * 3
    enough = random.Random(seed).randrange(len(out) // 3)
    with Gate(rootfs / "go") as go:
        script = "read x </go; cat /out.bin /out.bin /out.bin; exit 5"
        with live(rootfs, state_root, "detached", script) as it:
            log = it.directory / "stdout.log"
            go.open()
            until(it.directory, lambda: log.exists() and log.stat().st_size > enough)
            kill(it.supervisor)
            assert craterun("wait", it.directory.name).stdout == b"5\n"
        check_ended(it, 5)
    content = log.read_bytes()
    before = common_prefix(content, out)
    after = len(content) - before
    assert digest(content[before:]) == digest(out[len(out) - after :] if after else b"")
    assert len(out) - len(content) <= HOLE_BYTES


@FOREGROUND_AND_DETACHED
def test_killing_successors_costs_nothing_either(
    craterun: CommandLine, rootfs: Path, state_root: Path, kind: str
) -> None:
    out, _ = add_noise(rootfs, SIZE)
    with Gate(rootfs / "go") as go:
        script = "for i in 1 2 3 4; do cat /out.bin; read x </go; done; exit 5"
        with live(rootfs, state_root, kind, script) as it:
            logged(it.directory, SIZE)
            kill(it.supervisor)
            for part in (2, 3, 4):
                go.open()
                logged(it.directory, part * SIZE)
                successor = successor_of(it.keeper)
                kill(successor)
            go.open()
            assert craterun("wait", it.directory.name).stdout == b"5\n"
        check_ended(it, 5)
        check_log(it.directory, out * 4, b"")


def test_a_container_that_ended_while_nobody_supervised_is_recorded(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    """The supervisor is stopped, the container ends, the supervisor is killed: the keeper knows."""
    with Gate(rootfs / "go") as go:
        script = "read x </go; echo last; exit 6"
        with live(rootfs, state_root, "detached", script) as it:
            os.kill(it.supervisor, signal.SIGSTOP)
            go.open()
            wait_ended(it.pid)
            kill(it.supervisor)
            assert craterun("wait", it.directory.name).stdout == b"6\n"
        check_ended(it, 6)
        check_log(it.directory, b"last\n", b"")


def test_a_container_that_removes_itself_does_so_under_a_successor(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    with Gate(rootfs / "go") as go:
        with live(rootfs, state_root, "detached", "read x </go; exit 6", "--rm") as it:
            kill(it.supervisor)
            wait_ended(it.supervisor)
            go.open()
            assert craterun("wait", it.directory.name).stdout == b"6\n"
        assert ids(state_root) == []
        assert cgroups_of(it.directory.name) == []


def test_an_interactive_container_sees_the_end_of_its_input(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    """Who wrote to it is gone; a pipe that nobody will ever write to must not stay open."""
    env = cli_environment(state_root)
    with subprocess.Popen(
        command("run", "-i", "-a", "--rootfs", str(rootfs), "--", "sh", "-c", "cat; echo over"),
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        os.write(process.stdin.fileno(), b"line\n")
        read_until(process.stdout.fileno(), b"line\n")
        directory = the_container(state_root)
        process.kill()
    assert craterun("wait", directory.name).stdout == b"0\n"
    check_log(directory, b"line\nover\n", b"")


# --- the keeper ---------------------------------------------------------------------------------

HOLD_MEMORY = (
    "{ head -c 200000000 /dev/zero; echo >/full; read x </block; } "
    "| tail -c 200000000 >/dev/null & "
)
"""A process that takes the kernel a while to end, since so much has to be freed."""


@FOREGROUND_AND_DETACHED
def test_killing_the_keeper_ends_the_container_and_that_is_told(
    craterun: CommandLine, rootfs: Path, state_root: Path, kind: str
) -> None:
    """The kernel kills what the keeper has launched; how it would have ended, nobody knows."""
    script = f"{HOLD_MEMORY} echo first; read x </block"
    with Gate(rootfs / "block"), Gate(rootfs / "full") as full:
        with live(rootfs, state_root, kind, script) as it:
            full.wait()
            logged(it.directory, len(b"first\n"))
            kill(it.keeper)
            if kind == "foreground":
                told = read_until(it.errors, b"\n")
                assert told.startswith(f"craterun: container {it.directory.name}: ".encode())
                assert b"keeper died" in told
            assert craterun("wait", it.directory.name).stdout == b"?\n"
        wait_ended(it.supervisor)
        check_ended(it, None)
    record = metadata(it.directory)
    assert "keeper died" in record["error"]
    assert "in use" not in record["error"]
    assert b"stopped (?)" in craterun("ps").stdout
    check_log(it.directory, b"first\n", b"")
    if kind == "foreground":
        assert it.process.returncode == 125


def test_killing_supervisor_and_keeper_at_once_leaves_what_rm_can_remove(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    """Nobody is left to write the record, so `ps` compares it with what exists (podman#7393)."""
    with Gate(rootfs / "block"):
        with live(rootfs, state_root, "detached", "echo first; read x </block") as it:
            logged(it.directory, len(b"first\n"))
            os.kill(it.supervisor, signal.SIGSTOP)
            kill(it.keeper, it.supervisor)
            for pid in (it.supervisor, it.keeper, it.pid):
                wait_ended(pid)
        name = it.directory.name
        assert metadata(it.directory)["status"] == "running"
        assert b" lost " in craterun("ps").stdout
        assert craterun("ps", "--running", "-q").stdout == b""
        assert craterun("wait", name).stdout == b"?\n"
        assert craterun("logs", name).stdout == b"first\n"
        assert craterun("exec", name, "--", "true").returncode == 125
        assert craterun("rm", name).returncode == 0
        assert (ids(state_root), cgroups_of(name)) == ([], [])


# --- exec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["command line", "keeper"])
def test_killing_an_exec_kills_its_command_and_nothing_else(
    craterun: CommandLine, rootfs: Path, state_root: Path, victim: str
) -> None:
    """moby#9994, runc#3359: the command went on. It must also not stay behind as a zombie, which
    would keep the container from ending for as long as nobody reaps it.
    """
    with Gate(rootfs / "block"), Gate(rootfs / "here") as here:
        with sleeper(rootfs, state_root) as container_id:
            arguments = ("exec", container_id, "--", "sh", "-c", "echo >/here; read x </block")
            with background(state_root, *arguments) as process:
                here.wait()
                (keeper,) = children_of(process.pid)
                inside = executed_by(keeper)
                pidfd = os.pidfd_open(inside)
                kill(process.pid if victim == "command line" else keeper)
                wait_readable(pidfd)
                os.close(pidfd)
            assert process.returncode == (-9 if victim == "command line" else 125)
            if victim == "keeper":
                wait_ended(inside)  # nobody but its new parent, which we are, can reap it
            assert craterun("exec", container_id, "--", "echo", "alive").stdout == b"alive\n"
        assert craterun("wait", container_id).stdout == b"0\n"


# --- at random moments --------------------------------------------------------------------------


def remove_all(craterun: CommandLine, state_root: Path, known: list[str]) -> None:
    """`rm --force` of all that is there leaves nothing of any of the ``known`` containers."""
    here = ids(state_root)
    if here:
        removed = craterun("rm", "--force", *here, timeout=PATIENCE_SECONDS)
        assert (removed.returncode, removed.stderr) == (0, b"")
        assert sorted(removed.stdout.decode().split()) == sorted(here)
    assert [name for name in ids(state_root) if name in known] == []
    assert {name: cgroups_of(name) for name in known if cgroups_of(name)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("victim", ["supervisor", "keeper"])
def test_killing_one_of_us_amid_a_hundred_launches_leaks_nothing(
    craterun: CommandLine, rootfs: Path, state_root: Path, victim: str, seed: int
) -> None:
    """What runs goes on under a successor, or dies with the keeper; the rest can be removed."""
    chance = random.Random(f"{victim} {seed}")
    enough = chance.randrange(1, 100)
    known: list[str] = []
    with (
        Gate(rootfs / "block"),
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH_MANY, str(state_root), str(rootfs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            known.append(line.decode().strip())
            if len(known) == enough:
                time.sleep(chance.uniform(0, 0.03))  # the moment is what this test varies
                kill(process.pid if victim == "supervisor" else children_of(process.pid)[0])
        assert process.wait() == (-9 if victim == "supervisor" else 1)
        remove_all(craterun, state_root, known)
    assert ids(state_root) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--attach", "--detach"])
def test_killing_the_command_line_at_any_moment_of_a_start_leaks_nothing(
    craterun: CommandLine, rootfs: Path, state_root: Path, how: str
) -> None:
    """Whoever is left of it becomes our child, and goes on to a container or to its own end."""
    chance = random.Random(how)
    arguments = ("run", how, "--rootfs", str(rootfs), "--", "sh", "-c", "read x </block")
    state_root.mkdir()
    with Gate(rootfs / "block"):
        for _ in range(12):
            with background(state_root, *arguments) as process:
                time.sleep(chance.uniform(0.02, 0.3))  # the moment is what this test varies
                process.kill()
            while left := children_of(os.getpid()):
                pidfd = os.pidfd_open(left[0])
                until(state_root, lambda: ids(state_root) or not is_alive(left[0]), pidfd)
                os.close(pidfd)
                remove_all(craterun, state_root, ids(state_root))
    assert ids(state_root) == []
