"""A server that is short of something: its clients do without it, its containers notice nothing."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.containers import helpers, host_limits_helpers
from tests.containers.helpers import SLEEP, Cli, Live, detach_obliging, read_line
from tests.leaks import open_descriptors
from tests.serving import Server, serving

cli = helpers.cli
own_cgroup = host_limits_helpers.own_cgroup
make_gate = helpers.make_gate
OBLIGING = ("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
NOTHING_IS_FREE = 4
"""A limit of open files below which everything is in use."""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def require_served(server: Server, cli: Cli) -> None:
    """It starts containers."""
    live = cli.detach("--", *SLEEP)
    assert parent(live.pid) == server.children()["craterun-keeper"]
    cli.ok("rm", "--force", live.id)


def fill(server: Server, cli: Cli) -> list[Live]:
    """Its containers when it has no room for another one."""
    ours: list[Live] = []
    options = ("--detach", "--stop-timeout", "0")
    while (finished := cli("run", *options, "--", *SLEEP)).returncode == 0:
        live = cli.live(finished.stdout.decode().strip())
        if parent(live.pid) != server.children()["craterun-keeper"]:
            return ours  # the client was not let in
        ours.append(live)
    assert b"Too many open files" in finished.stderr
    return ours


def test_workers_that_there_is_no_descriptor_for_are_lost_and_nothing_else(
    server: Server, cli: Cli
) -> None:
    live = cli.detach("--", *SLEEP)
    for _ in range(2):
        waiting = cli.start("wait", live.id)
        server.busy_worker()
        had = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (NOTHING_IS_FREE, had[1]))
        waiting.kill()  # and another worker is ordered
        waiting.wait(60)
        assert cli.ok("--no-serve", "ps", "--format", "json").count('"status": "running"') == 1
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, had)
        require_served(server, cli)
    assert cli.live(live.id).pid == live.pid


def test_clients_do_not_take_the_descriptors_that_containers_need(
    cli: Cli, state_root: Path
) -> None:
    most, reserve = 128, 32
    prefix = ("prlimit", f"--nofile={most}:{most}")
    limited = cli.behind(*prefix)
    with serving(state_root, prefix=prefix) as server:
        ours = fill(server, limited)
        assert len(ours) >= most // 16
        clients = [limited.start("wait", ours[0].id) for _ in range(14)]
        assert limited.ok("ps", "--format", "json").count('"status": "running"') >= len(ours)
        assert len(server.descriptors()) < most - reserve + 8
        assert [limited.live(one.id).pid for one in ours] == [one.pid for one in ours]
        limited.ok("stop", "--time", "0", ours[0].id)
        for process in clients:
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, b"137\n", b"")
        require_served(server, limited)
        cli.ok("rm", "--force", *cli.ids())


def test_a_server_without_room_for_clients_can_be_told_to_end(cli: Cli, state_root: Path) -> None:
    prefix = ("prlimit", "--nofile=128:128")
    with serving(state_root, prefix=prefix) as server:
        ours = fill(server, cli.behind(*prefix))
        assert cli.behind(*prefix).ok("shutdown") == ""
        assert server.wait() == (0, b"")
        assert {cli.record(one.id)["exit_code"] for one in ours} == {137}


@pytest.mark.parametrize("own_cgroup", ["pids"], indirect=True)
def test_a_spawner_that_cannot_fork_goes_on(own_cgroup: Path, server: Server, cli: Cli) -> None:
    @contextmanager
    def no_processes(spawner: int) -> Iterator[None]:
        (own_cgroup / "cgroup.procs").write_text(str(spawner))
        (own_cgroup / "pids.max").write_text("1")
        yield
        (own_cgroup / "pids.max").write_text("max")

    require_spawner_goes_on(server, cli, no_processes)


@pytest.mark.parametrize("more", [0, 1])
def test_a_spawner_without_free_descriptors_goes_on(server: Server, cli: Cli, more: int) -> None:
    @contextmanager
    def no_descriptors(spawner: int) -> Iterator[None]:
        had = resource.prlimit(spawner, resource.RLIMIT_NOFILE)
        free = min({*range(1000)} - open_descriptors(spawner).keys())
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, (free + more, had[1]))
        yield
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, had)

    require_spawner_goes_on(server, cli, no_descriptors)


def require_spawner_goes_on(
    server: Server, cli: Cli, shortage: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Its other workers and their clients notice nothing; those who come now do without."""
    live = cli.detach("--", *SLEEP)
    waiting = cli.start("wait", live.id)
    server.busy_worker()
    with shortage(server.children()["craterun-spawn"]):
        for _ in range(4):  # more than wait for a job already
            assert cli.ok("ps", "--format", "json").count('"status": "running"') == 1
        other = cli.detach("--", *SLEEP)
        assert parent(other.pid) != server.children()["craterun-keeper"]
    require_served(server, cli)
    cli.ok("stop", "--time", "0", live.id)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out, err) == (0, b"137\n", b"")


def test_more_clients_than_the_soft_limit_of_open_files_and_nobody_inherits_another(
    cli: Cli, state_root: Path
) -> None:
    soft, hard = 24, 4096
    prefix = ("prlimit", f"--nofile={soft}:{hard}")
    limited = cli.behind(*prefix)
    with serving(state_root, prefix=prefix) as server:
        keeper = server.children()["craterun-keeper"]
        live = limited.detach("--", *SLEEP)
        assert parent(live.pid) == keeper
        clients = [limited.start("wait", live.id) for _ in range(soft + 8)]
        deadline = time.monotonic() + helpers.PATIENCE_SECONDS
        while len(busy := server.busy_workers()) < len(clients):
            assert time.monotonic() < deadline, busy
            os.sched_yield()
        assert [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in (live.pid, *busy)] == [
            (soft, hard)
        ] * (1 + len(busy))
        limited.ok("stop", "--time", "0", live.id)
        for process in clients:
            assert process.communicate(timeout=60) == (b"137\n", b"")


def test_containers_have_their_time_at_the_end_where_no_descriptor_is_free(
    cli: Cli, state_root: Path, rootfs: Path, make_gate: Callable[[Path], helpers.Gate]
) -> None:
    """Nothing is opened to stop them; a thread that could not do so would have killed them all."""
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    script = "trap 'read x </gate; exit 5' TERM; echo >/up; while :; do sleep 0.1; done"
    with serving(state_root) as server:
        started = [cli.start("run", "--attach", "--", *OBLIGING) for _ in range(3)]
        for process in started:
            assert read_line(process) == "ready"
        inside = ("--rootfs", str(rootfs), "--", "sh", "-c", script)
        keen = cli.detach("--restart", "always", "--stop-timeout", "1000", *inside)
        up.wait()
        had = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (NOTHING_IS_FREE, had[1]))
        server.process.send_signal(signal.SIGTERM)
        # They say so before they end, and then there are free ones.
        for process in started:
            assert read_line(process) == "bye"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, had)
        gate.open()
        assert server.wait() == (0, b"")
        for process in started:
            assert process.wait(60) == 5
        assert cli.record(keen.id)["exit_code"] == 5
        assert cli.record(keen.id)["restarts"] == 0


def test_a_paused_container_goes_on_to_its_end(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as server:
        live = detach_obliging(cli, "--stop-timeout", "1000")
        cli.ok("pause", live.id)
        assert server.end() == (0, b"")
        assert cli.record(live.id)["exit_code"] == 5
    told = cli.ok("events")
    assert "unpaused" in told
    assert "signaled" in told
