"""The phases in a container's record: all there, in order, as long as what they measure."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec

from craterun import ExitStatus, Spec, Supervisor
from craterun.core.phases import Phases
from tests.containers.streams_helpers import (
    Gate,
    background,
    metadata,
    parent_of,
    running_pid,
    the_container,
    wait_ended,
)

SHARED_PAGE = "/dev/zero (deleted)"
"""What /proc/PID/maps calls memory that a process shares with its children."""


def phases_of(directory: Path) -> Phases:
    return msgspec.convert(metadata(directory)["phases_us"], Phases)


async def test_the_phases_of_a_life_are_all_recorded_and_add_up(
    rootfs: Path, state_root: Path
) -> None:
    async with Supervisor(state_root) as supervisor:
        with Gate(rootfs / "go") as go:
            before = time.monotonic_ns()
            spec = Spec(rootfs=str(rootfs), command=("sh", "-c", "read x </go"))
            container = await supervisor.start(spec)
            running = time.monotonic_ns()
            go.open()
            released = time.monotonic_ns()
            assert await container.wait() == ExitStatus(0)
            after = time.monotonic_ns()
    phases = phases_of(state_root / container.id)
    assert phases == container.record.phases_us
    lengths = msgspec.structs.asdict(phases)
    assert None not in lengths.values()
    assert min(lengths.values()) >= 0
    rounding = len(lengths) / 2
    # They do not overlap, and all of them were between our asking and our being told.
    assert sum(lengths.values()) <= (after - before) / 1000 + rounding
    # It ran from before we knew that it did until after we let it end.
    assert lengths["run"] >= (released - running) / 1000 - 1


def test_phases_before_the_death_of_a_supervisor_are_kept(rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    inside = ("--rootfs", str(rootfs), "--", "sh", "-c", "echo >/up; read x </go")
    with Gate(rootfs / "go") as go, Gate(rootfs / "up") as up:
        with background(state_root, "run", "--attach", *inside):
            up.wait()
            directory = the_container(state_root)
            pid = running_pid(directory)
            before = phases_of(directory)
            keeper = parent_of(pid)
            os.kill(parent_of(keeper), signal.SIGKILL)
        go.open()
        wait_ended(keeper)
    after = phases_of(directory)
    assert None not in msgspec.structs.astuple(after)
    assert msgspec.structs.astuple(after)[:6] == msgspec.structs.astuple(before)[:6]


def test_an_init_shares_no_memory_with_the_keeper(rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    inside = ("--rootfs", str(rootfs), "--init", "--", "sh", "-c", "echo >/up; read x </go")
    with (
        Gate(rootfs / "go") as go,
        Gate(rootfs / "up") as up,
        background(state_root, "run", "--attach", *inside) as process,
    ):
        up.wait()
        init = running_pid(the_container(state_root))
        assert SHARED_PAGE in maps(parent_of(init))
        assert SHARED_PAGE not in maps(init)
        go.open()
        assert process.wait(30) == 0


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
