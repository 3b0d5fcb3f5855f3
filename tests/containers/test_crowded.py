"""So many containers alive that a child begins with its keeper's descriptors, not with copies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from craterun import Container, Spec, Supervisor
from craterun.core.errors import CraterunError
from craterun.core.logoptions import LogOptions
from craterun.keeper.launcher import _FEW
from tests.containers.streams_helpers import parent_of
from tests.leaks import open_descriptors

_SHORT = 120
_LOOK = """
for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$fd ] && echo $fd; done
echo told $1 >&2
exit $1
"""


@asynccontextmanager
async def crowd(supervisor: Supervisor, rootfs: Path, count: int) -> AsyncIterator[int]:
    """So many containers that sleep. Their keeper's pid."""
    spec = Spec(rootfs=str(rootfs), command=("sleep", "1000000"))
    sleepers: list[Container] = []
    try:
        for _ in range(count):
            sleepers.append(await supervisor.start(spec))
        assert sleepers[0].record.pid is not None
        yield parent_of(sleepers[0].record.pid)
    finally:
        for container in sleepers:
            container.kill()
        for container in sleepers:
            status = await container.wait()
            assert status.signal == 9


async def test_many_short_ones_beside_many_others(rootfs: Path, state_root: Path) -> None:
    """Eight at a time: output, exit codes, descriptors inside and in the keeper are right."""
    numbers = iter(range(_SHORT))
    rootfs_text = str(rootfs)

    async def worker() -> None:
        for number in numbers:
            command = ("sh", "-c", _LOOK, "sh", str(number))
            container = await supervisor.start(Spec(rootfs=rootfs_text, command=command))
            assert (await container.wait()).exit_code == number
            directory = state_root / container.id
            assert (directory / "stderr.log").read_bytes() == b"told %d\n" % number
            assert (directory / "stdout.log").read_bytes() == b"0\n1\n2\n"

    async with (
        Supervisor(state_root) as supervisor,
        crowd(supervisor, rootfs, _FEW + 20) as keeper,
    ):
        before = len(open_descriptors(keeper))
        async with trio.open_nursery() as workers:
            for _ in range(8):
                workers.start_soon(worker)
        # The last ones are let go of with the next message.
        container = await supervisor.start(Spec(rootfs=rootfs_text, command=("true",)))
        await container.wait()
        left = len(open_descriptors(keeper)) - before
        assert 0 <= left <= 8 * 4, open_descriptors(keeper)


async def test_low_numbers_never_run_out(rootfs: Path, state_root: Path) -> None:
    """What is kept of long-lived ones is moved out of the way of those to come."""
    async with Supervisor(state_root) as supervisor, crowd(supervisor, rootfs, 200) as keeper:
        low = [number for number in open_descriptors(keeper) if number < 256]
        assert len(low) < 250
        assert len(open_descriptors(keeper)) > 700
        spec = Spec(rootfs=str(rootfs), command=("echo", "x"), log=LogOptions(driver="none"))
        container = await supervisor.start(spec)
        assert (await container.wait()).exit_code == 0


@pytest.mark.parametrize("merged", [False, True])
async def test_every_kind_of_start_works(rootfs: Path, state_root: Path, merged: bool) -> None:
    async with Supervisor(state_root) as supervisor, crowd(supervisor, rootfs, _FEW + 2):
        spec = Spec(rootfs=str(rootfs), command=("cat",), interactive=True, merge_output=merged)
        container = await supervisor.start(spec)
        assert container.stdin is not None
        await trio.to_thread.run_sync(os.write, container.stdin.fileno(), b"words")
        container.stdin.close()
        assert (await container.wait()).exit_code == 0
        assert (state_root / container.id / "stdout.log").read_bytes() == b"words"
        with pytest.raises(CraterunError, match="not found"):
            await supervisor.start(Spec(rootfs=str(rootfs), command=("no-such-program",)))
        terminal = Spec(
            rootfs=str(rootfs),
            command=("sh", "-c", "[ -t 2 ] && echo yes"),
            terminal=True,
            init=merged,
        )
        container = await supervisor.start(terminal)
        assert (await container.wait()).exit_code == 0
        out = (state_root / container.id / "stdout.log").read_bytes()
        assert out == b"yes\r\n"
        container = await supervisor.start(Spec(rootfs=str(rootfs), command=("sleep", "1000000")))
        execution = await supervisor.execute(container.id, ("sh", "-c", "exit 3"))
        execution.stop_reading()
        assert (await execution.wait()).exit_code == 3
        container.kill()
        await container.wait()
