"""Pausing on hosts without a version 2 hierarchy.

A mount that covers it, in a mount namespace of the test's own, makes this host one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Gate, mount_namespace, wait_exit
from tests.containers.pause_helpers import FORKS, Hog, busy_elsewhere, frozen
from tests.containers.streams_helpers import cgroups_of, parent_of

cli = helpers.cli
make_gate = helpers.make_gate


def unified_mounts() -> list[str]:
    """Where a version 2 hierarchy is mounted."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [fields[1] for fields in lines if fields[2] == "cgroup2"]


COVER = 'for point; do mount -t tmpfs none "$point"; done'


def test_without_a_v2_hierarchy_the_v1_freezer_serves(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate], make_rootfs: Callable[[str], Path]
) -> None:
    with mount_namespace(COVER, *unified_mounts()) as aside:
        inside = cli.behind(*aside.enter)
        hog = Hog(inside, rootfs, make_gate(rootfs / "gate"))
        state = Path(f"/sys/fs/cgroup/freezer/craterun/{hog.live.id}/freezer.state")
        assert state.read_text() == "THAWED\n"
        inside.ok("pause", "hog")
        assert state.read_text() == "FROZEN\n"
        assert "paused" in inside.ok("ps")
        assert "already paused" in inside.refused("pause", "hog")
        assert "is paused" in inside.refused("exec", "hog", "--", "true")
        before = hog.ticks()
        hog.ask()
        busy_elsewhere(inside, make_rootfs)
        assert hog.ticks() == before
        inside.ok("unpause", "hog")
        assert hog.gate.wait() == b"seen\n"
        assert "not paused" in inside.refused("unpause", "hog")
        inside.ok("rm", "--force", "hog")


def test_v1_stops_one_that_forks_all_the_time(cli: Cli, rootfs: Path) -> None:
    with mount_namespace(COVER, *unified_mounts()) as aside:
        inside = cli.behind(*aside.enter)
        live = inside.detach("--rootfs", str(rootfs), "--", "sh", "-c", FORKS)
        for _ in range(5):
            inside.ok("pause", live.id)
            before = [s.pid for s in live.siblings()]
            inside.ok("ps")
            assert [s.pid for s in live.siblings()] == before
            inside.ok("unpause", live.id)
        inside.ok("rm", "--force", live.id)
        wait_exit(live.pid)


@pytest.mark.parametrize("how", ["kill", "stop", "rm"])
def test_a_container_that_v1_froze_can_be_ended(cli: Cli, rootfs: Path, how: str) -> None:
    with mount_namespace(COVER, *unified_mounts()) as aside:
        inside = cli.behind(*aside.enter)
        live = inside.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)
        inside.ok("pause", "one")
        assert frozen(live)
        if how == "stop":
            inside.ok("stop", "--time", "0.1", "one")
        elif how == "kill":
            inside.ok("kill", "one")
        else:
            inside.ok("rm", "--force", "one")
        wait_exit(live.pid)
        if how != "rm":
            assert inside.ok("wait", "one") == "137\n"
            inside.ok("rm", "one")
    assert not cgroups_of(live.id)


def test_what_v1_froze_and_lost_its_keeper_is_removed_by_force(cli: Cli, rootfs: Path) -> None:
    with mount_namespace(COVER, *unified_mounts()) as aside:
        inside = cli.behind(*aside.enter)
        live = inside.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)
        keeper = parent_of(live.pid)
        inside.ok("pause", "one")
        os.kill(keeper, signal.SIGKILL)
        wait_exit(keeper)
        inside.ok("rm", "--force", "one")
        wait_exit(live.pid)
    assert not cgroups_of(live.id)


def test_a_damaged_record_does_not_keep_what_v1_froze_from_being_removed(
    cli: Cli, rootfs: Path
) -> None:
    with mount_namespace(COVER, *unified_mounts()) as aside:
        inside = cli.behind(*aside.enter)
        live = inside.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)
        inside.ok("pause", "one")
        cli.metadata(live.id).write_text("{")
        inside.ok("rm", "--force", live.id)
        wait_exit(live.pid)
    assert not cgroups_of(live.id)


def test_a_host_without_any_freezer_is_refused_with_the_reason(cli: Cli, rootfs: Path) -> None:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    covered = [f[1] for f in lines if f[2] == "cgroup2" or "freezer" in f[3].split(",")]
    with mount_namespace(COVER, *covered) as aside:
        inside = cli.behind(*aside.enter)
        live = inside.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)
        message = inside.refused("pause", "one")
        assert message == (
            f"container {live.id} cannot be paused: this host has neither a cgroup v2 hierarchy "
            "nor the v1 freezer; mount one, and start the container anew"
        )
        inside.ok("rm", "--force", "one")
