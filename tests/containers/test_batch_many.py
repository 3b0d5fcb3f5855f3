"""A batch as a library, and that it costs the same after many jobs as after a few."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import trio

from craterun import Container, Spec, Supervisor
from craterun.batch.job import Job
from craterun.batch.options import Keep, Options
from craterun.batch.runner import Batch
from tests.containers.batch_helpers import sh

JOBS = 4


class Feed:
    """Lines without end, of which a test counts how many were asked for."""

    def __init__(self, count: int) -> None:
        self.left = count

    async def receive(self) -> bytes:
        """The next line."""
        await trio.lowlevel.checkpoint()
        if self.left == 0:
            return b""
        self.left -= 1
        return json.dumps(sh("echo out", key=f"a key of its own: {self.left}")).encode() + b"\n"


async def run(supervisor: Supervisor, rootfs: Path, count: int) -> list[dict[str, Any]]:
    results = []

    async def emit(line: bytes) -> None:
        await trio.lowlevel.checkpoint()
        results.append(json.loads(line))
        assert count - feed.left - len(results) <= options.jobs

    feed = Feed(count)
    options = Options(jobs=JOBS, defaults=Job(rootfs=str(rootfs)), capture=10, keep=Keep.NONE)
    batch = Batch(supervisor, options, feed.receive, emit)
    await batch.run()
    assert (batch.counts.succeeded, batch.counts.done, batch.counts.running) == (count, count, 0)
    return results


def cost() -> tuple[int, int]:
    """Objects and descriptors of this process."""
    gc.collect()
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd"))


async def test_nothing_is_left_in_memory_of_a_job_that_is_done(
    rootfs: Path, state_root: Path
) -> None:
    async with Supervisor(state_root) as supervisor:
        assert len(await run(supervisor, rootfs, 20)) == 20
        objects, descriptors = cost()
        results = await run(supervisor, rootfs, 60)
        assert {r["stdout"] for r in results} == {"out\n"}
        del results
        now = cost()
        # Less than one object more for each job, and no descriptor.
        assert now[0] - objects < 60
        assert now[1] == descriptors
        # The last ones may just be forgotten.
        assert sum(isinstance(o, Container | Spec) for o in gc.get_objects()) <= 2 * JOBS
    assert [name for name in os.listdir(state_root) if not name.startswith(".")] == []


async def test_cancelling_a_batch_leaves_nothing_running(rootfs: Path, state_root: Path) -> None:
    async def receive() -> bytes:
        await trio.lowlevel.checkpoint()
        return json.dumps(sh("sleep 1000 & wait")).encode() + b"\n"

    async def emit(line: bytes) -> None:
        raise AssertionError(line)

    async with Supervisor(state_root) as supervisor:
        options = Options(jobs=2, defaults=Job(rootfs=str(rootfs)))
        begun = trio.Event()
        with trio.CancelScope() as scope:
            batch = Batch(supervisor, options, receive, emit, changed=begun.set)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batch.run)
                await begun.wait()
                scope.cancel()
    assert scope.cancelled_caught
