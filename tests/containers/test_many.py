"""A thousand short containers: nothing is lost or left behind (moby#20951, moby#27289)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

from craterun import Container, ExitStatus, Spec, Stream, Supervisor
from tests.conftest import CommandLine
from tests.containers.streams_helpers import (
    Gate,
    background,
    cgroups_of,
    check_log,
    digest,
    ids,
    metadata,
    noise,
    output_of,
    parent_of,
    read_until,
    running_pid,
    stat_fields,
    the_container,
)

FOLDER = {"metadata.json", "stdout.log", "stderr.log", "log.index"}


def check_folder(directory: Path, text: str) -> None:
    """A container's folder is as documented after ``echo text``."""
    assert set(os.listdir(directory)) == FOLDER
    check_log(directory, f"{text}\n".encode(), b"")
    record = metadata(directory)
    assert (record["id"], record["command"]) == (directory.name, ["echo", text])
    assert (record["status"], record["exit_code"], record["signal"]) == ("stopped", 0, None)
    assert record["error"] is None
    assert record["created"] <= record["started"] <= record["finished"]
    assert cgroups_of(directory.name) == []


async def at_once(limit: int, total: int, run: Callable[[int], Awaitable[None]]) -> None:
    """``run`` each number below ``total``, ``limit`` of them side by side."""
    numbers = iter(range(total))

    async def worker() -> None:
        for number in numbers:
            await run(number)

    async with trio.open_nursery() as workers:
        for _ in range(limit):
            workers.start_soon(worker)


async def read_all(container: Container, stream: Stream) -> bytes:
    """All that ``container`` writes to ``stream``."""
    reader, data = container.follow(stream), b""
    try:
        while chunk := await reader.receive():
            data += chunk
    finally:
        reader.close()
    return data


@pytest.mark.slow
async def test_a_thousand_echoes_through_one_supervisor_lose_nothing(
    rootfs: Path, state_root: Path
) -> None:
    """Sixteen at a time; every tenth has a reader besides."""
    texts: dict[str, str] = {}

    async def run(number: int) -> None:
        text = f"container {number} says {number * 7919}"
        container = await supervisor.start(Spec(rootfs=str(rootfs), command=("echo", text)))
        texts[container.id] = text
        if number % 10 == 0:
            assert await read_all(container, Stream.STDOUT) == f"{text}\n".encode()
        assert await container.wait() == ExitStatus(0)
        assert metadata(state_root / container.id)["status"] == "stopped"

    async with Supervisor(state_root) as supervisor:
        await at_once(16, 1000, run)
    assert len(texts) == 1000
    assert set(ids(state_root)) == set(texts)
    for container_id, text in texts.items():
        check_folder(state_root / container_id, text)


@pytest.mark.slow
def test_fifty_attached_echoes_lose_nothing(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    def run(number: int) -> None:
        text = f"container {number} says {number * 7919}"
        result = craterun("run", "--attach", "--rootfs", str(rootfs), "--", "echo", text)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{text}\n".encode(), b"")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, range(50)))
    folders = {metadata(state_root / name)["command"][1]: name for name in ids(state_root)}
    assert len(folders) == 50
    for text, name in folders.items():
        check_folder(state_root / name, text)


def test_containers_that_remove_themselves_leave_no_folder(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    def run(number: int) -> subprocess.CompletedProcess[bytes]:
        script = f"echo {number}; exit {number}"
        arguments = ("run", "--rm", "-a", "--name", f"n{number}", "--rootfs", str(rootfs))
        return craterun(*arguments, "--", "sh", "-c", script)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(run, range(16)))
    assert [(r.returncode, r.stdout, r.stderr) for r in results] == [
        (number, f"{number}\n".encode(), b"") for number in range(16)
    ]
    assert ids(state_root) == []
    assert list((state_root / ".names").iterdir()) == []


async def test_containers_that_run_side_by_side_keep_their_output_apart(
    rootfs: Path, state_root: Path
) -> None:
    """Thirty-two, all alive at the same time, each writing noise of its own."""
    contents = [noise(100 + number, 2**18 + number) for number in range(32)]
    for number, content in enumerate(contents):
        (rootfs / f"{number}.bin").write_bytes(content)

    async def run(number: int) -> None:
        script = f"echo >/here; read x </go; cat /{number}.bin; exit {number}"
        container = await supervisor.start(
            Spec(rootfs=str(rootfs), command=("sh", "-c", script), name=f"n{number}")
        )
        received = await read_all(container, Stream.STDOUT)
        assert await container.wait() == ExitStatus(number)
        assert digest(received) == digest(contents[number])
        check_log(state_root / container.id, contents[number], b"")

    with Gate(rootfs / "here") as here, Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor, trio.open_nursery() as runs:
            for number in range(32):
                runs.start_soon(run, number)
            arrived = 0
            while arrived < 32:
                arrived += len(await trio.to_thread.run_sync(here.wait))
            for _ in range(32):
                go.open()


async def test_containers_that_start_at_once_in_a_fresh_rootfs_all_get_their_mounts(
    make_rootfs: Callable[[str], Path], state_root: Path
) -> None:
    """Each finds /proc and the like missing, and another may make them in the same moment."""

    async def run(rootfs: Path) -> None:
        container = await supervisor.start(
            Spec(rootfs=str(rootfs), command=("sh", "-c", "cat /etc/hostname; test -e /proc/self"))
        )
        assert await container.wait() == ExitStatus(0)
        hostname = (state_root / container.id / "stdout.log").read_text().strip()
        assert hostname == container.id[:12]

    async with Supervisor(state_root) as supervisor:
        for number in range(12):
            async with trio.open_nursery() as runs:
                for rootfs in [make_rootfs(f"rootfs{number}")] * 12:
                    runs.start_soon(run, rootfs)


async def test_descriptors_do_not_grow_with_containers_that_have_ended(
    rootfs: Path, state_root: Path
) -> None:
    """Neither those of the supervisor nor those of the keeper."""

    async def count() -> tuple[int, int]:
        with Gate(rootfs / "go") as go:
            container = await supervisor.start(
                Spec(rootfs=str(rootfs), command=("sh", "-c", "read x </go"), interactive=True)
            )
            container.stdin.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert container.record.pid is not None
            keeper = parent_of(container.record.pid)
            counts = (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{keeper}/fd")))
            go.open()
            await container.wait()
        (rootfs / "go").unlink()
        return counts

    async def run(number: int) -> None:
        container = await supervisor.start(Spec(rootfs=str(rootfs), command=("echo", "x")))
        await container.wait()
        with pytest.raises(Exception, match="not found"):
            await supervisor.start(Spec(rootfs=str(rootfs), command=("no-such-command",)))

    async with Supervisor(state_root) as supervisor:
        await at_once(4, 8, run)
        before = await count()
        await at_once(4, 40, run)
        assert await count() == before


def ticks(pid: int) -> int:
    """CPU time that process ``pid`` has used: utime and stime, fields 14 and 15 of proc(5)."""
    fields = stat_fields(pid)
    return int(fields[11]) + int(fields[12])


def test_supervisor_and_keeper_of_an_idle_container_use_no_cpu(
    rootfs: Path, state_root: Path
) -> None:
    arguments = ("run", "-a", "--rootfs", str(rootfs), "--", "sh", "-c", "echo up; read x </go")
    with Gate(rootfs / "go") as go, background(state_root, *arguments) as process:
        read_until(output_of(process), b"up\n")
        container = running_pid(the_container(state_root))
        ours = (process.pid, parent_of(container))
        before = [ticks(pid) for pid in ours]
        time.sleep(0.5)  # what is measured, not a synchronisation
        used = [ticks(pid) - start for pid, start in zip(ours, before, strict=True)]
        go.open()
    assert max(used) <= 1, used
