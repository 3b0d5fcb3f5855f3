"""OOM kills: each one counted, each verdict right, whoever was the victim and whoever watched."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from craterun import Container, ExitStatus, Spec, Supervisor
from tests.containers import helpers
from tests.containers.helpers import Cli, Gate, Live, read_line, wait_exit
from tests.containers.oom_helpers import (
    HOG,
    LIMIT,
    Feed,
    limit_memory,
    memory_cgroups,
    memory_hierarchy,
)
from tests.containers.streams_helpers import parent_of
from tests.uml import in_uml

pytestmark = pytest.mark.cgroup_v2
cli = helpers.cli
make_gate = helpers.make_gate

FACTS = ("exit_code", "signal", "oom_kills", "init_oom_killed")
Limited = Callable[..., Live]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Containers are accounted for memory."""
    with memory_cgroups():
        yield


@pytest.fixture
def go(rootfs: Path, make_gate: Callable[[Path], Gate]) -> Gate:
    """Where a container waits for its limit."""
    return make_gate(rootfs / "go")


@pytest.fixture
def limited(cli: Cli, rootfs: Path, go: Gate) -> Limited:
    """Starts ``script`` in a detached container, with a memory limit from its first line on."""

    def start(script: str, *options: str, size: int = LIMIT) -> Live:
        inside = ("--rootfs", str(rootfs), "--", "sh", "-c", f"read x </go; {script}")
        live = cli.detach(*options, *inside)
        limit_memory(live.pid, live.id, size)
        go.open()
        return live

    return start


def facts(cli: Cli, container_id: str) -> tuple[object, ...]:
    """What is on record."""
    record = cli.record(container_id)
    kills, first, last = (record[f"oom_{key}"] for key in ("kills", "first", "last"))
    assert (first is None) == (last is None) == (not kills), record
    if kills:
        assert str(record["started"]) <= str(first) <= str(last) <= str(record["finished"])
    return tuple(record[key] for key in FACTS)


def events(cli: Cli, *options: str) -> list[dict[str, object]]:
    """``craterun events --json``."""
    return [json.loads(line) for line in cli.ok("events", "--json", *options).splitlines()]


def status(cli: Cli, container_id: str) -> str:
    """The column of ``ps``."""
    (line,) = [line for line in cli.ok("ps").splitlines() if line.startswith(container_id)]
    return re.split(" {2,}", line)[2]


def test_the_first_process_as_the_victim(cli: Cli, limited: Limited) -> None:
    live = limited(f"exec {HOG}")
    assert cli.ok("wait", live.id) == "137\n"
    assert facts(cli, live.id) == (137, 9, 1, True)
    assert status(cli, live.id) == "oom"
    told = {str(e["type"]): e["attributes"] for e in events(cli)}
    assert list(told) == ["created", "started", "oom", "exited"]
    assert told["oom"] == {"kills": 1, "limit_bytes": LIMIT, "init_alive": False}
    assert told["exited"] == dict(zip(FACTS, (137, 9, 1, True), strict=True))


def test_a_killed_child_is_reported_at_once_and_marks_no_clean_exit(
    cli: Cli, limited: Limited, go: Gate
) -> None:
    """conmon#426 and kubernetes#104454 in one: not missed, and not mislabelled."""
    feed = Feed(cli)
    live = limited(f"{HOG}; echo $?; {HOG}; read x </go; exit 0")
    told = feed.until("oom", kills=2)
    # Both at once if they were over before the container was watched.
    assert [e["type"] for e in told] in (
        ["created", "started", "oom", "oom"],
        ["created", "started", "oom"],
    )
    assert told[-1]["attributes"] == {"kills": 2, "limit_bytes": LIMIT, "init_alive": True}
    assert {e["id"] for e in told} == {live.id}
    # It lives, and that is on record, already.
    assert cli.record(live.id)["status"] == "running"
    assert cli.record(live.id)["oom_kills"] == 2
    assert status(cli, live.id) == "running, 2 OOM kills"
    go.open()
    assert cli.ok("wait", live.id) == "0\n"
    assert facts(cli, live.id) == (0, None, 2, False)
    assert status(cli, live.id) == "stopped (0), 2 OOM kills"


def test_a_child_as_the_victim_and_the_end_in_the_same_moment(cli: Cli, limited: Limited) -> None:
    live = limited(f"{HOG}; exit 7")
    assert cli.ok("wait", live.id) == "7\n"
    assert facts(cli, live.id) == (7, None, 1, False)


def test_all_of_a_group_are_victims(cli: Cli, rootfs: Path, go: Gate) -> None:
    """Version 2 can kill the whole container together; version 1 kills the one process."""
    script = f"read x </go; {HOG}; exit 6"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    group = limit_memory(live.pid, live.id) / "memory.oom.group"
    expected: list[tuple[object, ...]] = [(6, None, 1, False)]
    if memory_hierarchy().version == 2:
        group.write_text("1")
        # The kernel counts the one that it chose again when it kills the group, if it still can.
        expected = [(137, 9, 2, True), (137, 9, 3, True)]
    go.open()
    cli.ok("wait", live.id)
    assert facts(cli, live.id) in expected


def test_sigkill_from_outside_is_no_oom(cli: Cli, limited: Limited) -> None:
    live = limited("while :; do :; done")
    os.kill(live.pid, signal.SIGKILL)
    assert cli.ok("wait", live.id) == "137\n"
    assert facts(cli, live.id) == (137, 9, 0, False)
    assert status(cli, live.id) == "stopped (137)"


def test_sigkill_long_after_a_child_was_the_victim_is_no_oom(
    cli: Cli, limited: Limited, go: Gate
) -> None:
    feed = Feed(cli, "--filter", "type=oom")
    live = limited(f"{HOG}; read x </go")
    assert feed.next()["attributes"]["init_alive"] is True
    os.kill(live.pid, signal.SIGKILL)
    assert cli.ok("wait", live.id) == "137\n"
    assert facts(cli, live.id) == (137, 9, 1, False)
    assert status(cli, live.id) == "stopped (137), 1 OOM kill"


@pytest.mark.parametrize("command", [("kill",), ("stop", "--time", "0"), ("rm", "--force")])
def test_our_own_sigkill_is_in_the_journal(
    cli: Cli, limited: Limited, command: tuple[str, ...]
) -> None:
    live = limited("while :; do :; done")
    cli.ok(*command, live.id)
    cli("wait", live.id)
    told = {str(e["type"]): e["attributes"] for e in events(cli, "--filter", f"id={live.id}")}
    assert told["signaled"] in ({"signal": 9}, {"signal": 15})
    assert told["exited"] == dict(zip(FACTS, (137, 9, 0, False), strict=True))
    assert ("removed" in told) == (command[0] == "rm")


def test_the_limit_that_was_asked_for_is_named(cli: Cli, rootfs: Path) -> None:
    options = ("--attach", "--rm", "--memory", "24m", "--rootfs", str(rootfs))
    finished = cli("run", *options, "--", *HOG.split())
    assert finished.returncode == 137
    message = "the memory limit of 24 MiB was hit: 1 OOM kill; its first process was killed\n"
    assert finished.stderr.decode().endswith(message)


@pytest.mark.parametrize("quiet", [False, True])
def test_the_attached_terminal_is_told(cli: Cli, rootfs: Path, go: Gate, quiet: bool) -> None:
    """Of a child's end at once, and of all of them at the end; unless --quiet."""
    options = ["--attach", *(["-q"] if quiet else []), "--rootfs", str(rootfs)]
    script = f"echo up; read x </go; {HOG} 2>/dev/null; read x </go; exec {HOG}"
    run = cli.start("run", *options, "--", "sh", "-c", script)
    assert read_line(run) == "up"
    (container_id,) = cli.ids()
    live = cli.live(container_id)
    limit_memory(live.pid, live.id)
    feed = Feed(cli, "--filter", "type=oom")
    go.open()
    assert feed.next()["attributes"]["kills"] == 1
    go.open()
    _, stderr = run.communicate(timeout=helpers.PATIENCE_SECONDS)
    assert run.returncode == 137
    assert facts(cli, live.id) == (137, 9, 2, True)
    assert stderr.decode().splitlines() == [
        line
        for line in (
            f"craterun: container {live.id}: memory limit of 24 MiB was hit: the kernel has killed "
            "a process (1 OOM kill so far); its first process lives on",
            f"craterun: container {live.id}: the memory limit of 24 MiB was hit: 2 OOM kills; its "
            "first process was killed",
        )
        if not quiet
    ]


@pytest.mark.parametrize("victim", ["init", "child"])
def test_a_supervisor_killed_meanwhile_costs_neither_count_nor_verdict(
    cli: Cli, limited: Limited, go: Gate, victim: str
) -> None:
    """One kill before, one while nobody watches; none is counted or told twice."""
    feed = Feed(cli, "--filter", "type=oom")
    last = f"exec {HOG}" if victim == "init" else f"{HOG}; exit 3"
    live = limited(f"{HOG}; read x </go; {last}")
    assert feed.next()["attributes"]["kills"] == 1
    keeper = parent_of(live.pid)
    supervisor = parent_of(keeper)
    os.kill(supervisor, signal.SIGKILL)
    go.open()
    cli.ok("wait", live.id)
    expected = (137, 9, 2, True) if victim == "init" else (3, None, 2, False)
    assert facts(cli, live.id) == expected
    mine = [e for e in events(cli) if e["id"] == live.id]
    assert [e["type"] for e in mine] == ["created", "started", "oom", "oom", "exited"]
    kills = [e["attributes"]["kills"] for e in mine if e["type"] == "oom"]  # type: ignore[index]
    assert kills == [1, 2]
    wait_exit(keeper)


def test_a_successor_goes_on_watching(cli: Cli, limited: Limited, go: Gate) -> None:
    feed = Feed(cli, "--filter", "type=oom")
    live = limited(f"{HOG}; read x </go; {HOG}; read x </go")
    assert feed.next()["attributes"]["kills"] == 1
    keeper = parent_of(live.pid)
    supervisor = parent_of(keeper)
    os.kill(supervisor, signal.SIGKILL)
    go.open()
    told = feed.next()["attributes"]
    assert told == {"kills": 2, "limit_bytes": LIMIT, "init_alive": True}
    # What was cleared by the first supervisor and by the second stays so.
    os.kill(live.pid, signal.SIGKILL)
    cli.ok("wait", live.id)
    assert facts(cli, live.id) == (137, 9, 2, False)


@pytest.mark.parametrize("who", ["craterun kill", "nobody"])
def test_two_causes_of_one_death_are_not_guessed_between(
    cli: Cli, limited: Limited, go: Gate, rootfs: Path, make_gate: Callable[[Path], Gate], who: str
) -> None:
    """A supervisor that was stopped saw no child die before the container was killed."""
    done = make_gate(rootfs / "done")
    live = limited(f"read x </go; {HOG}; echo >/done; read x </go; exec {HOG}")
    supervisor = parent_of(parent_of(live.pid))
    os.kill(supervisor, signal.SIGSTOP)
    go.open()
    done.wait()
    if who == "nobody":
        go.open()
    else:
        cli.ok("kill", live.id)
    wait_exit(live.pid)
    os.kill(supervisor, signal.SIGCONT)
    assert cli.ok("wait", live.id) == "137\n"
    expected = (137, 9, 2, True) if who == "nobody" else (137, 9, 1, None)
    assert facts(cli, live.id) == expected


# --- many at once ---------------------------------------------------------------------------------

KINDS = {
    "init": (f"exec {HOG}", ExitStatus(137, 9), 1, True),
    "child": (f"{HOG}; exit 0", ExitStatus(0), 1, False),
    "two": (f"{HOG} & {HOG}; wait; exit 4", ExitStatus(4), 2, False),
    "last": (f"{HOG}; exec {HOG}", ExitStatus(137, 9), 2, True),
    "none": ("exit 5", ExitStatus(5), 0, False),
    "outside": ("while :; do :; done", ExitStatus(137, 9), 0, False),
}


@pytest.mark.slow
async def test_the_race_of_many(
    rootfs: Path, state_root: Path, make_gate: Callable[[Path], Gate]
) -> None:
    """Each verdict right, none missed, whatever happens in the same moment (conmon#426)."""
    total, at_a_time = (36, 12) if in_uml() else (504, 42)
    ended: dict[str, tuple[str, Container]] = {}

    async def one(supervisor: Supervisor, number: int) -> None:
        kind = list(KINDS)[number % len(KINDS)]
        gate = rootfs / f"gate{number}"
        os.mkfifo(gate)
        script = f"read x </{gate.name}; {KINDS[kind][0]}"
        spec = Spec(rootfs=str(rootfs), command=("sh", "-c", script))
        container = await supervisor.start(spec)
        assert container.record.pid is not None
        limit_memory(container.record.pid, container.id)
        await trio.to_thread.run_sync(gate.write_bytes, b"go\n")
        if kind == "outside":
            os.kill(container.record.pid, signal.SIGKILL)
        assert await container.wait() == KINDS[kind][1], kind
        gate.unlink()
        ended[container.id] = (kind, container)

    async with Supervisor(state_root) as supervisor:
        for first in range(0, total, at_a_time):
            async with trio.open_nursery() as batch:
                for number in range(first, first + at_a_time):
                    batch.start_soon(one, supervisor, number)

    assert len(ended) == total
    for container_id, (kind, container) in ended.items():
        record = json.loads((state_root / container_id / "metadata.json").read_text())
        verdict = (record["oom_kills"], record["init_oom_killed"])
        assert verdict == KINDS[kind][2:], (kind, record)
        assert (container.record.oom_kills, container.record.init_oom_killed) == verdict
