"""--cgroup-parent: containers below a cgroup of somebody else's, whose limits they share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.core.units import new_id
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, wait_exit
from tests.containers.test_limits import HIERARCHIES, HOG, limit
from tests.leaks import cgroups_named

pytestmark = pytest.mark.cgroup_v2

cli = helpers.cli

MEMORY = next(h for h in HIERARCHIES if "memory" in h.controllers)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A cgroup with the memory controller, limited to 32 MiB, and one below it.

    Tests name it before ``cli``, which ends the containers in it first.
    """
    outer = Path(MEMORY.mountpoint, f"craterun-test-{new_id()}")
    if MEMORY.version == 2:
        (Path(MEMORY.mountpoint) / "cgroup.subtree_control").write_text("+memory")
    (outer / "inner").mkdir(parents=True)
    name = "memory.max" if MEMORY.version == 2 else "memory.limit_in_bytes"
    (outer / name).write_text(str(32 << 20))
    yield outer / "inner"
    (outer / "inner").rmdir()
    outer.rmdir()


def relative(parent: Path) -> str:
    return str(parent.relative_to(MEMORY.mountpoint))


def test_a_container_lives_where_it_was_told_to(parent: Path, cli: Cli, rootfs: Path) -> None:
    options = ("--rootfs", str(rootfs), "--cgroup-parent", f"/{relative(parent)}", "-m", "16m")
    live = cli.detach(*options, "--", *SLEEP)
    assert str(parent / live.id) in cgroups_named(live.id)
    procs = (parent / live.id / "cgroup.procs").read_text().split()
    assert procs == [str(live.pid)]
    assert limit(live, "memory.max", "memory.limit_in_bytes") == str(16 << 20)
    cli.ok("rm", "--force", live.id)
    assert cgroups_named(live.id) == []
    assert parent.is_dir()


def test_the_parents_limit_holds_for_its_containers(parent: Path, cli: Cli, rootfs: Path) -> None:
    options = ("--rootfs", str(rootfs), "--cgroup-parent", relative(parent))
    assert cli("run", *options, "--", *HOG.split()).returncode == 137


def test_a_further_command_is_there_too(parent: Path, cli: Cli, rootfs: Path) -> None:
    options = ("--rootfs", str(rootfs), "--cgroup-parent", relative(parent))
    live = cli.detach(*options, "--", *SLEEP)
    assert cli("exec", live.id, "--", *HOG.split()).returncode == 137
    assert live.proc.exists()


def test_what_two_killed_processes_leave_there_is_removed(
    parent: Path, cli: Cli, rootfs: Path
) -> None:
    options = ("--rootfs", str(rootfs), "--cgroup-parent", relative(parent))
    live = cli.detach(*options, "--", *SLEEP)
    keeper = int(live.status()["PPid"])
    supervisor = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
    # Neither can act for the other any more.
    os.kill(keeper, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    wait_exit(live.pid)
    assert str(parent / live.id) in cgroups_named(live.id)
    cli.ok("rm", live.id)
    assert cgroups_named(live.id) == []


def test_a_link_that_leads_out_is_no_cgroup(cli: Cli, rootfs: Path) -> None:
    for name in ("cgroup.procs", "no-such"):
        complaint = cli.refused("run", "--cgroup-parent", name, "--", "true")
        assert "does not exist" in complaint
    assert cli.ids() == set()
