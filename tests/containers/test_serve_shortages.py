"""A server that is short of something: its clients do without it, its containers notice nothing."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Live, read_line
from tests.serving import Server, serving

cli = helpers.cli
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
    while (finished := cli("run", "--detach", "--", *SLEEP)).returncode == 0:
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


def test_containers_have_their_time_at_the_end_where_no_descriptor_is_free(
    cli: Cli, state_root: Path
) -> None:
    """Nothing is opened to stop them; a thread that could not do so would have killed them all."""
    with serving(state_root) as server:
        started = [cli.start("run", "--attach", "--", *OBLIGING) for _ in range(3)]
        for process in started:
            assert read_line(process) == "ready"
        keen = cli.detach("--restart", "always", "--", *OBLIGING)
        had = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (NOTHING_IS_FREE, had[1]))
        server.process.send_signal(signal.SIGTERM)
        # They say so before they end, and then there are free ones.
        for process in started:
            assert read_line(process) == "bye"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, had)
        assert server.wait() == (0, b"")
        for process in started:
            assert process.wait(60) == 5
        assert cli.record(keen.id)["exit_code"] == 5
        assert cli.record(keen.id)["restarts"] == 0


def test_a_paused_container_goes_on_to_its_end(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as server:
        live = cli.detach("--stop-timeout", "1000", "--", *OBLIGING)
        cli.ok("pause", live.id)
        assert server.end() == (0, b"")
        assert cli.record(live.id)["exit_code"] == 5
    told = cli.ok("events")
    assert "unpaused" in told
    assert "signaled" in told
