"""When an exec is ended, all that it has started ends; when it ends by itself, that lives on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.exec_helpers import (
    SPAWN,
    alive,
    group_of,
    groups,
    in_layout,
    on_host,
    spawn,
)
from tests.containers.helpers import SLEEP, Cli, Live, read_line, read_some, wait_exit
from tests.containers.pause_helpers import FORKS
from tests.containers.streams_helpers import cgroups_of, children_of

cli = helpers.cli
LOOP = "sleep 1000000 & while :; do wait; done"
everywhere = pytest.mark.parametrize("layout", [on_host, "v1", "v1 without freezer"])


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container to execute in."""
    return cli.detach("--rootfs", str(rootfs), "--", *SLEEP)


@everywhere
def test_all_of_it_ends_with_a_killed_client(cli: Cli, rootfs: Path, layout: str) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--", *SLEEP)
        running = spawn(inside, live)
        group = group_of(live, running.pids[0])
        assert {group_of(live, pid) for pid in running.pids} == {group}
        kind = {"host": "unified", "v1": "freezer", "v1 without freezer": "pids"}[layout]
        assert layout == "host" or kind in str(group)
        # What there is in front of Python has become it by execve.
        running.process.kill()
        running.check_over()
        inside.ok("rm", "--force", live.id)
    assert cgroups_of(live.id) == []


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT"])
def test_all_of_it_ends_with_a_command_that_a_signal_to_the_client_has_ended(
    cli: Cli, live: Live, name: str
) -> None:
    # As when a terminal is closed, or a CI job cancelled.
    number = signal.Signals[f"SIG{name}"]
    running = spawn(cli, live, then=f"trap 'exit 3' {name}; {LOOP}", more=4)
    running.process.send_signal(number)
    assert running.process.wait() == 3
    running.check_over()


def test_all_of_it_ends_when_somebody_insists(cli: Cli, live: Live) -> None:
    running = spawn(cli, live, then=f"trap 'echo deaf' INT; {LOOP}", more=4)
    assert running.process.stdout is not None
    running.process.send_signal(signal.SIGINT)
    while read_some(running.process.stdout.fileno()):  # until two come within a second
        running.process.send_signal(signal.SIGINT)
    assert running.process.wait() == 137
    running.check_over()


@pytest.mark.cgroup_v2
@pytest.mark.no_server
def test_all_of_it_ends_with_its_keeper_since_the_client_sees_to_it(cli: Cli, live: Live) -> None:
    running = spawn(cli, live)
    os.kill(running.keeper, signal.SIGKILL)
    assert running.process.wait() == 125
    for pid in running.pids:
        wait_exit(pid)
    os.waitpid(running.pids[0], 0)  # orphans come to us, as they would to PID 1
    running.check_over()


@everywhere
@pytest.mark.parametrize("deaf", [False, True])
def test_a_timeout_ends_all_of_it_with_124(cli: Cli, rootfs: Path, layout: str, deaf: bool) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--", *SLEEP)
        # Asked by another signal that it answers, or deaf to the usual one.
        then = f"trap '{'' if deaf else 'echo bye; exit 3'}' {'TERM' if deaf else 'USR1'}"
        options = ("--stop-timeout", "0") if deaf else ("--stop-signal", "USR1")
        running = spawn(inside, live, "--timeout", "3", *options, then=f"{then}; {LOOP}", more=4)
        output, complaint = running.process.communicate()
        assert running.process.returncode == 124
        assert output == (b"" if deaf else b"bye\n")
        assert complaint.decode() == (
            f"craterun: command in container {live.id}: stopped, having run for 3 s (--timeout)\n"
        )
        running.check_over()
        inside.ok("rm", "--force", live.id)


def test_what_ends_in_time_is_not_touched(cli: Cli, live: Live) -> None:
    finished = cli("exec", "--timeout", "1000", live.id, "--", "sh", "-c", "exit 9")
    assert (finished.returncode, finished.stderr) == (9, b"")


@pytest.mark.parametrize("option", ["--timeout=0", "--timeout=-1", "--stop-timeout=-1"])
def test_what_is_no_time_is_refused(cli: Cli, option: str) -> None:
    assert "seconds" in cli.refused("exec", option, "none", "--", "true")


@everywhere
def test_what_is_left_behind_lives_on_and_is_the_containers(
    cli: Cli, rootfs: Path, layout: str
) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--", *SLEEP)
        script = f"{{ {SPAWN}; }} >/dev/null 2>&1; exit 7"
        finished = inside("exec", live.id, "--", "sh", "-c", script)
        assert (finished.returncode, finished.stderr) == (7, b"")
        first, *left = live.siblings()
        assert first.pid == live.pid
        assert len(left) == 2
        for one in left:
            assert one.cgroups() == first.cgroups()
        assert groups(live) == []
        inside.ok("rm", "--force", live.id)
        for one in left:
            wait_exit(one.pid)


@everywhere
@pytest.mark.no_server
def test_what_forks_all_the_time_ends_with_its_client(cli: Cli, rootfs: Path, layout: str) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--init", "--", *SLEEP)
        # Six that fork without end, of which none has the command as parent or its session.
        forks = f"for i in 1 2 3 4 5 6; do busybox setsid sh -c '{FORKS}' & done; echo up"
        process = inside.start("exec", live.id, "--", "sh", "-c", f"{forks}; exec sleep 1000000")
        assert read_line(process) == "up"
        (keeper,) = children_of(process.pid)
        process.kill()
        wait_exit(keeper)
        assert groups(live) == []
        assert len(alive(live)) == 2  # PID 1 and its sleep
        inside.ok("rm", "--force", live.id)


@everywhere
def test_the_limits_of_the_container_hold(cli: Cli, rootfs: Path, layout: str) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--pids", "20", "--", *SLEEP)
        script = "exec 3>/dev/null; for i in $(seq 30); do sleep 1000000 >&3 2>&3 & done"
        finished = inside("exec", live.id, "--", "sh", "-c", script)
        assert finished.returncode != 0
        assert b"fork" in finished.stderr
        assert len(live.siblings()) == 19  # the shell was the twentieth, and has ended
        inside.ok("rm", "--force", live.id)


@pytest.mark.parametrize("layout", [on_host, "v1"])
def test_a_paused_container_pauses_its_execs_and_they_can_be_ended(
    cli: Cli, rootfs: Path, layout: str
) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--", *SLEEP)
        running = spawn(inside, live)
        group = group_of(live, running.pids[0])
        inside.ok("pause", live.id)
        if layout == "v1":
            assert (group / "freezer.state").read_text() == "FROZEN\n"
        else:
            assert "frozen 1" in (group / "cgroup.events").read_text().splitlines()
        running.process.kill()
        if layout == "v1":  # which lets nothing that is frozen die
            running.process.wait()
            inside.ok("unpause", live.id)
        for pid in (*running.pids, *running.own_keeper):
            wait_exit(pid)
        if layout != "v1":
            inside.ok("unpause", live.id)
        assert alive(live) == [live.pid]
        inside.ok("rm", "--force", live.id)
    assert cgroups_of(live.id) == []


@everywhere
def test_a_container_ends_with_its_execs_and_no_cgroup_is_left(
    cli: Cli, rootfs: Path, layout: str
) -> None:
    with in_layout(cli, layout) as inside:
        live = inside.detach("--rootfs", str(rootfs), "--", *SLEEP)
        running = spawn(inside, live)
        inside.ok("exec", "--detach", live.id, "--", *SLEEP)
        others = [one.pid for one in live.siblings()]
        assert len(groups(live)) == 2
        inside.ok("kill", live.id)
        assert inside.ok("wait", live.id) == "137\n"
        assert cgroups_of(live.id) == []
        assert running.process.wait() == 137
        for pid in others:
            wait_exit(pid)
        assert inside.record(live.id)["error"] is None


@pytest.mark.cgroup_v2
def test_the_cgroup_cannot_be_changed_from_inside(cli: Cli, live: Live) -> None:
    script = "cat /proc/self/cgroup; mount | grep cgroup; mkdir /sys/fs/cgroup/exec-0"
    finished = cli("exec", live.id, "--", "sh", "-c", script)
    assert finished.returncode == 1
    assert b"0::/exec-" in finished.stdout  # what is above the container is not shown
    assert live.id.encode() not in finished.stdout
