"""How many starts are under way at once, and who comes next."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from craterun import Container, ExitStatus, Spec, Supervisor
from craterun.core.errors import UsageError
from craterun.supervisor.admission import Admission, default_parallel_starts
from craterun.supervisor.link import KeeperLink
from tests.containers.streams_helpers import ids


async def test_a_start_in_line_is_let_in_when_another_is_done_and_can_be_cancelled(
    rootfs: Path, state_root: Path
) -> None:
    """The keeper is stopped meanwhile, so that nothing gets done."""
    spec = Spec(rootfs=str(rootfs), command=("true",))
    started: list[tuple[int, Container]] = []
    scopes = [trio.CancelScope() for _ in range(6)]

    async def start(number: int) -> None:
        with scopes[number]:
            started.append((number, await supervisor.start(spec)))

    link = KeeperLink.spawn()
    async with Supervisor(state_root, link=link, max_parallel_starts=2) as supervisor:
        assert await (await supervisor.start(spec)).wait() == ExitStatus(0)
        before = set(ids(state_root))
        os.kill(link.pid, signal.SIGSTOP)
        async with trio.open_nursery() as starts:
            for number in range(6):
                starts.start_soon(start, number)
                await trio.testing.wait_all_tasks_blocked(0.01)
            in_line_since = time.monotonic()
            while len(set(ids(state_root)) - before) < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            # In line: nothing was begun, and nothing comes of it. Under way: not half-way.
            scopes[3].cancel()
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(set(ids(state_root)) - before) == 2
            assert started == []
            held_up = time.monotonic() - in_line_since
            os.kill(link.pid, signal.SIGCONT)
        assert sorted(number for number, _ in started) == [0, 1, 2, 4, 5]
        for number, container in started:
            assert await container.wait() == ExitStatus(0)
            assert container.record.phases_us is not None
            waited = container.record.phases_us.queue
            assert waited is not None
            assert number < 2 or waited >= held_up * 1_000_000
    assert set(ids(state_root)) - before == {container.id for _, container in started}


async def test_a_start_that_fails_leaves_its_place_to_the_next(
    rootfs: Path, state_root: Path
) -> None:
    async with Supervisor(state_root, max_parallel_starts=1) as supervisor:
        for _ in range(3):
            with pytest.raises(Exception, match="not found"):
                await supervisor.start(Spec(rootfs=str(rootfs), command=("no-such-command",)))
        container = await supervisor.start(Spec(rootfs=str(rootfs), command=("true",)))
        assert await container.wait() == ExitStatus(0)


async def test_the_line_is_served_in_its_order_and_never_overtaken() -> None:
    admission = Admission(1)
    served: list[str] = []
    let_go = trio.Event()

    async def come_and_come_back(name: str) -> None:
        async with admission:
            served.append(name)
            assert admission.under_way == 1
            await let_go.wait()
        # In the same step in which the place became free, and was given to the first in line.
        async with admission:
            served.append(f"{name} again")

    names = [f"visitor {number}" for number in range(6)]
    async with trio.open_nursery() as visitors:
        for name in names:
            visitors.start_soon(come_and_come_back, name)
            await trio.testing.wait_all_tasks_blocked()
        assert served == names[:1]
        let_go.set()
    assert served[:6] == names
    assert sorted(served[6:]) == [f"{name} again" for name in names]
    assert admission.under_way == 0


def test_at_least_one_start_must_be_allowed() -> None:
    with pytest.raises(UsageError, match="max_parallel_starts is 0"):
        Supervisor(max_parallel_starts=0)
    assert default_parallel_starts() >= 8
