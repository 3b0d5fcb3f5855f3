"""The anyio client, from an asyncio and from a trio program."""

from __future__ import annotations

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
