"""The anyio client, from an asyncio and from a trio program."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from craterun import Spec, Stream
from craterun.client import Client, RunFailedError
from craterun.core.errors import (
    ContainerNotPausedError,
    ContainerPausedError,
    NoSuchContainerError,
)
from tests.containers.helpers import wait_exit

Backend = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "trio"])
def run_in(request: pytest.FixtureRequest) -> Backend:
    """Runs an async function on one of the two event loops."""

    def run(function: Callable[..., Awaitable[Any]]) -> None:
        anyio.run(function, backend=request.param)

    return run


def test_a_container_runs_to_its_end_and_its_output_can_be_read(
    run_in: Backend, state_root: Path, rootfs: Path
) -> None:
    async def main() -> None:
        client = Client(state_root)
        command = ("sh", "-c", "echo out $X; echo err >&2; exit 7")
        spec = Spec(command=command, rootfs=str(rootfs), env={"X": "a b"}, name="worker")
        container = await client.run(spec)
        status = await client.wait("worker")
        assert status.exit_code == 7
        assert await client.read_log(container, Stream.STDOUT) == b"out a b\n"
        assert await client.read_log(container, Stream.STDERR) == b"err\n"
        assert [o.record.id for o in await client.containers()] == [container]
        await client.remove(container)
        assert not list(await client.containers())

    run_in(main)


def test_stop_ends_a_container_that_ignores_the_signal(
    run_in: Backend, state_root: Path, rootfs: Path
) -> None:
    async def main() -> None:
        client = Client(state_root)
        container = await client.run(Spec(command=("sleep", "1000"), rootfs=str(rootfs)))
        assert (await client.inspect(container)).running
        await client.stop(container, seconds=0.1)
        observed = await client.inspect(container)
        assert (observed.running, observed.record.signal) == (False, 9)

    run_in(main)


def test_cancelling_a_wait_leaves_the_container_alone(
    run_in: Backend, state_root: Path, rootfs: Path
) -> None:
    async def main() -> None:
        client = Client(state_root)
        container = await client.run(Spec(command=("sleep", "1000"), rootfs=str(rootfs)))
        with anyio.move_on_after(0.05) as scope:
            await client.wait(container)
        assert scope.cancelled_caught
        assert (await client.inspect(container)).running
        await client.remove(container, force=True)

    run_in(main)


def test_a_failed_start_says_why(run_in: Backend, state_root: Path, rootfs: Path) -> None:
    async def main() -> None:
        with pytest.raises(RunFailedError, match="'nope' not found") as caught:
            await Client(state_root).run(Spec(command=("nope",), rootfs=str(rootfs)))
        assert caught.value.exit_code == 127

    run_in(main)


def test_pause_stats_and_top(run_in: Backend, state_root: Path, rootfs: Path) -> None:
    async def main() -> None:
        client = Client(state_root)
        spec = Spec(command=("sh", "-c", "while :; do :; done"), rootfs=str(rootfs), name="hog")
        container = await client.run(spec)
        try:
            (process,) = await client.top("hog")
            assert (process.pid, process.command) == (1, spec.command)
            async with client.stats("hog", interval=0.1) as samples:
                first, second = await anext(samples), await anext(samples)
            assert first[0].cpu_percent is None
            assert second[0].cpu_percent is not None
            assert second[0].cpu_percent > 0
            await client.pause("hog")
            assert (await client.inspect("hog")).status == "paused"
            with pytest.raises(ContainerPausedError):
                await client.pause("hog")
            await client.unpause("hog")
            with pytest.raises(ContainerNotPausedError):
                await client.unpause("hog")
            with pytest.raises(NoSuchContainerError):
                async with client.stats("nobody"):
                    pass
        finally:
            await client.remove(container, force=True)

    run_in(main)


def test_samples_of_named_containers_end_with_them(
    run_in: Backend, state_root: Path, rootfs: Path
) -> None:
    async def main() -> None:
        client = Client(state_root)
        container = await client.run(Spec(command=("sleep", "1000"), rootfs=str(rootfs)))
        seen = 0
        async with client.stats(container, interval=0.1) as samples:
            async for sample in samples:
                assert [usage.id for usage in sample] == [container]
                if not seen:
                    await client.kill(container)
                seen += 1
        assert seen
        await client.wait(container)
        await client.remove(container)

    run_in(main)


def test_a_further_command_is_executed_and_ends_when_it_is_cancelled(
    run_in: Backend, state_root: Path, rootfs: Path
) -> None:
    async def main() -> None:
        client = Client(state_root)
        box = await client.run(Spec(command=("sleep", "1000000"), rootfs=str(rootfs)))
        script = "cat; echo $X >&2; id -un; exit 5"
        done = await client.execute(
            box, ("sh", "-c", script), env={"X": "a b"}, user="alice", stdin=b"in\n"
        )
        assert done == (5, b"in\nalice\n", b"a b\n")
        done = await client.execute(box, ("sleep", "1000000"), timeout=0.1)
        assert done.exit_code == 124
        async with anyio.create_task_group() as tasks:
            command = ("sh", "-c", "(busybox setsid sleep 1000000 &); echo >/up; sleep 1000000")
            os.mkfifo(rootfs / "up")
            tasks.start_soon(client.execute, box, command)
            await anyio.to_thread.run_sync((rootfs / "up").read_bytes)
            inside = {process.host_pid for process in await client.top(box)}
            tasks.cancel_scope.cancel()
        first = (await client.inspect(box)).record.pid
        for pid in inside - {first}:
            await anyio.to_thread.run_sync(wait_exit, pid)
        await client.remove(box, force=True)
        with pytest.raises(NoSuchContainerError):
            await client.execute(box, ("true",))

    run_in(main)
