"""pause and unpause, judged by what the kernel says of the processes."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Gate, Live, wait_exit
from tests.containers.pause_helpers import FORKS, Hog, busy_elsewhere, frozen
from tests.containers.streams_helpers import cgroups_of, parent_of, stat_fields, wait_readable

cli = helpers.cli
make_gate = helpers.make_gate
v2 = pytest.mark.cgroup_v2


@pytest.fixture
def hog(cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]) -> Hog:
    return Hog(cli, rootfs, make_gate(rootfs / "gate"))


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container named ``one`` that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)


# --- the effect -----------------------------------------------------------------------------------


@v2
def test_a_paused_container_uses_no_cpu_and_goes_on_where_it_was(
    cli: Cli, hog: Hog, make_rootfs: Callable[[str], Path]
) -> None:
    hog.ask()
    assert hog.gate.wait() == b"seen\n"
    assert cli.ok("pause", "hog") == f"{hog.live.id}\n"
    assert frozen(hog.live)
    before = hog.ticks()
    hog.ask()
    busy_elsewhere(cli, make_rootfs)
    assert hog.ticks() == before
    assert not hog.answered()
    assert cli.ok("unpause", "hog") == f"{hog.live.id}\n"
    assert not frozen(hog.live)
    assert hog.gate.wait() == b"seen\n"


@v2
def test_every_process_is_stopped_those_of_exec_and_nested_cgroups_too(
    cli: Cli, live: Live, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    gate = make_gate(rootfs / "gate")
    running = cli.start("exec", live.id, "--", "sh", "-c", "echo up >/gate; while :; do :; done")
    gate.wait()
    added = live.siblings()[-1]
    assert added.pid != live.pid
    # A cgroup inside of the container's own, as a process manager in there would make one.
    (own,) = (p for p in map(Path, cgroups_of(live.id)) if (p / "cgroup.freeze").exists())
    (own / "nested").mkdir()
    (own / "nested" / "cgroup.procs").write_text(str(added.pid))
    cli.ok("pause", live.id)
    assert "frozen 1" in (own / "nested" / "cgroup.events").read_text()
    before = stat_fields(added.pid)[11:13]
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "seq", "100000")
    assert stat_fields(added.pid)[11:13] == before
    cli.ok("kill", live.id)
    assert running.wait(helpers.PATIENCE_SECONDS) == 137


@v2
def test_ps_and_inspect_say_paused_and_the_record_is_not_touched(cli: Cli, live: Live) -> None:
    record = cli.metadata(live.id).read_bytes()
    cli.ok("pause", "one")
    assert "paused" in cli.ok("ps")
    (seen,) = json.loads(cli.ok("inspect", "one"))
    assert (seen["status"], seen["running"]) == ("paused", True)
    assert [c["status"] for c in json.loads(cli.ok("ps", "--running", "--format", "json"))] == [
        "paused"
    ]
    assert cli.metadata(live.id).read_bytes() == record
    cli.ok("unpause", "one")
    (seen,) = json.loads(cli.ok("inspect", "one"))
    assert (seen["status"], seen["running"]) == ("running", True)


def test_a_freeze_by_somebody_else_is_seen_and_can_be_ended(cli: Cli, live: Live) -> None:
    (own,) = (p for p in map(Path, cgroups_of(live.id)) if (p / "cgroup.freeze").exists())
    (own / "cgroup.freeze").write_text("1")
    poll, events = select.poll(), os.open(own / "cgroup.events", os.O_RDONLY)
    poll.register(events, select.POLLPRI)
    while b"frozen 1" not in os.pread(events, 4096, 0):
        assert poll.poll(helpers.PATIENCE_SECONDS * 1000)
    os.close(events)
    assert "paused" in cli.ok("ps")
    cli.ok("unpause", "one")
    assert not frozen(live)


@v2
def test_one_that_forks_all_the_time_is_stopped_as_a_whole(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", FORKS)
    for _ in range(5):
        cli.ok("pause", live.id)
        before = Path(f"/proc/{live.pid}/stat").read_text(), [s.pid for s in live.siblings()]
        cli.ok("ps")
        assert (Path(f"/proc/{live.pid}/stat").read_text(), [s.pid for s in live.siblings()]) == (
            before
        )
        cli.ok("unpause", live.id)


# --- what is refused ------------------------------------------------------------------------------


@v2
def test_pausing_twice_and_unpausing_what_runs_are_refused(cli: Cli, live: Live) -> None:
    assert cli.refused("unpause", "one") == f"container {live.id} is not paused"
    cli.ok("pause", "one")
    assert cli.refused("pause", "one") == f"container {live.id} is already paused"
    assert frozen(live)


def test_what_has_ended_or_never_was_cannot_be_paused(cli: Cli, live: Live) -> None:
    cli.ok("kill", "one")
    cli.ok("wait", "one")
    for command in ("pause", "unpause"):
        assert cli.refused(command, "one") == f"container {live.id} is not running"
        assert "no container 'nobody'" in cli.refused(command, "nobody")
        assert "which container?" in cli.refused(command)


def test_one_bad_id_does_not_keep_the_others_from_being_paused(cli: Cli, live: Live) -> None:
    finished = cli("pause", "nobody", "one")
    assert (finished.returncode, finished.stdout) == (125, f"{live.id}\n".encode())
    assert finished.stderr.count(b"\n") == 1
    assert frozen(live)


@v2
def test_exec_in_a_paused_container_is_refused_at_once(cli: Cli, live: Live) -> None:
    cli.ok("pause", "one")
    message = cli.refused("exec", "one", "--", "true")
    assert message == (
        f"container {live.id} is paused; let it go on first: craterun unpause {live.id}"
    )
    cli.ok("unpause", "one")
    assert cli.ok("exec", "one", "--", "echo", "hi") == "hi\n"


def test_rm_without_force_says_that_it_is_paused(cli: Cli, live: Live) -> None:
    cli.ok("pause", "one")
    assert f"container {live.id} is paused" in cli.refused("rm", "one")


# --- ending one that is paused --------------------------------------------------------------------


@v2
def test_kill_ends_a_paused_container(cli: Cli, live: Live) -> None:
    cli.ok("pause", "one")
    assert cli.ok("kill", "one") == f"{live.id}\n"
    assert cli.ok("wait", "one") == "137\n"
    assert cli.record(live.id)["error"] is None
    assert not cgroups_of(live.id)


@v2
def test_rm_force_ends_a_paused_container(cli: Cli, live: Live) -> None:
    cli.ok("pause", "one")
    assert cli.ok("rm", "--force", "one") == f"{live.id}\n"
    wait_exit(live.pid)
    assert not cli.ids()
    assert not cgroups_of(live.id)


TRAP = "trap 'echo bye; exit 5' TERM; echo up >/gate; while :; do read x </block; done"


@pytest.fixture
def trapping(cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]) -> Live:
    """A paused container that would handle SIGTERM."""
    gate, _ = make_gate(rootfs / "gate"), make_gate(rootfs / "block")
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", TRAP)
    gate.wait()
    cli.ok("pause", live.id)
    return live


@v2
def test_stop_lets_a_paused_container_handle_the_signal(cli: Cli, trapping: Live) -> None:
    live = trapping
    cli.ok("stop", "--time", "1000", live.id)
    assert cli.record(live.id)["exit_code"] == 5
    assert cli.log(live.id) == b"bye\n"


@v2
def test_a_signal_waits_until_the_container_goes_on(cli: Cli, trapping: Live) -> None:
    live = trapping
    cli.ok("kill", "--signal", "TERM", live.id)
    assert frozen(live)
    cli.ok("unpause", live.id)
    assert cli.ok("wait", live.id) == "5\n"


def test_a_second_signal_to_run_kills_a_paused_container(cli: Cli, rootfs: Path) -> None:
    running = cli.start("run", "--debug", "--rootfs", str(rootfs), "--", *SLEEP)
    assert running.stderr is not None
    container_id = helpers.read_line(running)
    cli.ok("pause", container_id)
    running.send_signal(signal.SIGTERM)
    pidfd, errors = os.pidfd_open(running.pid), running.stderr.fileno()
    while pidfd not in wait_readable(errors, pidfd):  # two signals at once would be one
        if b"received SIGTERM" in os.read(errors, 65536):
            running.send_signal(signal.SIGTERM)
    os.close(pidfd)
    assert running.wait() in (137, -signal.SIGTERM)  # one more found it on its way out
    assert cli.ok("wait", container_id) == "137\n"


# --- supervisors come and go ----------------------------------------------------------------------


@v2
def test_a_takeover_leaves_it_paused(cli: Cli, hog: Hog) -> None:
    keeper = parent_of(hog.live.pid)
    supervisor = parent_of(keeper)
    cli.ok("pause", "hog")
    before = hog.ticks()
    os.kill(supervisor, signal.SIGKILL)
    wait_exit(supervisor)
    assert "paused" in cli.ok("ps")
    assert frozen(hog.live)
    assert hog.ticks() == before
    hog.ask()
    cli.ok("unpause", "hog")
    hog.gate.wait()
    cli.ok("kill", "hog")
    assert cli.ok("wait", "hog") == "137\n"


def test_killing_keeper_and_supervisor_ends_it_though_paused(cli: Cli, live: Live) -> None:
    keeper = parent_of(live.pid)
    supervisor = parent_of(keeper)
    cli.ok("pause", "one")
    os.kill(keeper, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    wait_exit(live.pid)
    assert "lost" in cli.ok("ps")
    cli.ok("rm", "one")
    assert not cgroups_of(live.id)


@v2
def test_an_edited_record_does_not_make_us_freeze_somebody_else(
    cli: Cli, live: Live, make_rootfs: Callable[[str], Path]
) -> None:
    other = cli.detach("--rootfs", str(make_rootfs("other")), "--", *SLEEP)
    record = cli.record(live.id)
    record["cgroups"] = [*cgroups_of(other.id), "/"]
    cli.metadata(live.id).write_text(json.dumps(record))
    cli.ok("pause", "one")
    assert frozen(live)
    assert not frozen(other)
