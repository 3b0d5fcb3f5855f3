"""exec --detach: a command that its caller leaves alone, and an exec that the end comes between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from craterun import ExitStatus, Spec, Supervisor
from craterun.core.errors import ContainerNotRunningError
from tests.containers import helpers
from tests.containers.exec_helpers import SPAWN, alive, group_of, groups
from tests.containers.helpers import (
    PATIENCE_SECONDS,
    SLEEP,
    Cli,
    Gate,
    Live,
    the_complaint,
    wait_exit,
)
from tests.containers.streams_helpers import cgroups_of, parent_of

cli = helpers.cli
make_gate = helpers.make_gate


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container to execute in."""
    return cli.detach("--rootfs", str(rootfs), "--name", "box", "--", *SLEEP)


def detach(cli: Cli, live: Live, *arguments: str) -> Live:
    """``exec --detach``; the process of the command."""
    pid = int(cli.ok("exec", "--detach", *arguments))
    (process,) = (one for one in live.siblings() if one.pid == pid)
    return process


def ends(cli: Cli) -> list[dict[str, object]]:
    """What the journal tells of the ends of commands."""
    lines = cli.ok("events", "--json", "--filter", "type=exec_exited").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.cgroup_v2
def test_a_detached_command_runs_alone_and_leaves_nothing(
    cli: Cli, live: Live, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    go = make_gate(rootfs / "go")
    script = "echo seen nowhere; echo nor this >&2; read -u 3 x 3</go; exit 7"
    process = detach(cli, live, "box", "--", "sh", "-c", script)
    assert {process.descriptors()[n] for n in (0, 1, 2)} == {"/dev/null"}
    assert process.environment()["HOSTNAME"] == live.environment()["HOSTNAME"]
    keeper = parent_of(process.pid)
    supervisor = parent_of(keeper)
    assert group_of(live, process.pid).exists()
    go.open()
    for pid in (process.pid, keeper, supervisor):
        wait_exit(pid)
    assert groups(live) == []
    assert alive(live) == [live.pid]
    (told,) = ends(cli)
    assert (told["id"], told["attributes"]) == (live.id, {"pid": process.pid, "exit_code": 7})


def test_what_cannot_be_executed_is_told_in_the_foreground(cli: Cli, live: Live) -> None:
    for command, code in (("nope", 127), ("/bin", 126)):
        attached = the_complaint(cli("exec", "box", "--", command), code)
        assert cli.refused("exec", "-d", "box", "--", command, code=code) == attached
    for option in ("--tty", "--interactive"):
        assert option in cli.refused("exec", "-d", option, "box", "--", "true")
    assert "no container" in cli.refused("exec", "-d", "other", "--", "true").lower()
    assert "workdir" in cli.refused("exec", "-d", "-w", "/nope", "box", "--", "true")
    assert groups(live) == []


def test_it_lives_on_when_its_supervisor_is_killed(
    cli: Cli, live: Live, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    go, answer = make_gate(rootfs / "go"), make_gate(rootfs / "answer")
    script = f"{SPAWN}; while :; do read x </go; [ $x = end ] && exit; echo $x >/answer; done"
    process = detach(cli, live, "box", "--", "sh", "-c", script)
    keeper = parent_of(process.pid)
    supervisor = parent_of(keeper)
    os.kill(supervisor, signal.SIGKILL)
    wait_exit(supervisor)
    with open(rootfs / "go", "w") as lines:
        lines.write("alive\n")
    assert answer.wait() == b"alive\n"
    with open(rootfs / "go", "w") as lines:
        lines.write("end\n")
    wait_exit(keeper)
    # It has ended by itself: what it has left is the container's, and its cgroup is gone.
    assert groups(live) == []
    left = [one for one in live.siblings() if one.pid in alive(live)]
    assert len(left) == 3
    assert all(one.cgroups() == live.cgroups() for one in left)
    del go


@pytest.mark.cgroup_v2
def test_it_ends_with_its_keeper_or_its_container(cli: Cli, live: Live) -> None:
    process = detach(cli, live, "box", "--", "sh", "-c", f"{SPAWN}; exec sleep 1000000")
    inside = alive(live)[1:]
    supervisor = parent_of(parent_of(process.pid))
    os.kill(parent_of(process.pid), signal.SIGKILL)
    for pid in (*inside, supervisor):
        wait_exit(pid)
    os.waitpid(process.pid, 0)  # orphans come to us, as they would to PID 1
    assert groups(live) == []
    process = detach(cli, live, "box", "--", *SLEEP)
    supervisor = parent_of(parent_of(process.pid))
    cli.ok("kill", "box")
    for pid in (process.pid, supervisor):
        wait_exit(pid)
    cli.ok("wait", "box")
    assert cgroups_of(live.id) == []
    assert [event["attributes"]["exit_code"] for event in ends(cli)] == [None, 137]  # type: ignore[index]


def test_it_is_held_to_its_time(cli: Cli, live: Live) -> None:
    process = detach(cli, live, "--timeout", "1", "box", "--", "sh", "-c", f"{SPAWN}; sleep 1000")
    supervisor = parent_of(parent_of(process.pid))
    for pid in (*alive(live)[1:], supervisor):
        wait_exit(pid)
    assert [event["attributes"] for event in ends(cli)] == [{"pid": process.pid, "exit_code": 143}]
    assert alive(live) == [live.pid]
    assert groups(live) == []


# --- between the start and the end ----------------------------------------------------------------


async def test_an_exec_at_the_end_of_its_container_is_refused_or_ends_with_it(
    state_root: Path, rootfs: Path
) -> None:
    """Neither hangs, neither leaves anything: whichever comes first, at any distance in time."""
    outcomes: list[ExitStatus | str] = []

    async def execute(supervisor: Supervisor, container_id: str) -> None:
        try:
            execution = await supervisor.execute(container_id, ("true",))
            for stream in execution.streams:
                while await execution.receive(stream):
                    pass
            outcomes.append(await execution.wait())
        except ContainerNotRunningError as error:
            outcomes.append(str(error).replace(container_id, "ID"))

    with trio.fail_after(PATIENCE_SECONDS):
        async with Supervisor(state_root) as supervisor:
            for turn in range(30):
                spec = Spec(rootfs=str(rootfs), command=SLEEP)
                container = await supervisor.start(spec)
                async with trio.open_nursery() as together:
                    for _ in range(3):
                        together.start_soon(execute, supervisor, container.id)
                    # The distance is measured in turns of the event loop, and not by a clock.
                    for _ in range(turn):
                        await trio.lowlevel.checkpoint()
                    container.kill()
                await container.wait()
                assert container.record.error is None
                assert cgroups_of(container.id) == []
    assert len(outcomes) == 90
    refused = "container ID is not running; exec needs a running one"
    assert set(outcomes) <= {refused, ExitStatus(0), ExitStatus(137, signal.SIGKILL)}
