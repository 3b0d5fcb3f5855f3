"""Limits of hardware: of disks, and of processors, for which the cgroup v2 tier has no cpusets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli
from tests.containers.test_limits import CPUSETS, HIERARCHIES, limit

cli = helpers.cli


@pytest.mark.cgroup_v2
def test_a_disk_is_limited(cli: Cli, rootfs: Path) -> None:
    disks = sorted(p for p in Path("/sys/block").glob("*/dev") if "loop" not in str(p))
    if not disks:
        pytest.skip("no block device here")
    device = disks[-1].read_text().strip()
    live = cli.detach(
        "--rootfs", str(rootfs), "--io-max", f"{device} rbps=10m wiops=7", "--", *SLEEP
    )
    reads = limit(live, "io.max", "blkio.throttle.read_bps_device")
    assert reads in (f"{device} 10485760", f"{device} rbps=10485760 wbps=max riops=max wiops=7")
    writes = limit(live, "io.max", "blkio.throttle.write_iops_device")
    assert writes in (f"{device} 7", reads)


@pytest.mark.skipif(not CPUSETS, reason="this kernel has no cpusets")
def test_processors_are_those_that_were_asked_for(cli: Cli, rootfs: Path) -> None:
    last = max(os.sched_getaffinity(0))
    live = cli.detach(
        "--rootfs", str(rootfs), "--cpuset-cpus", str(last), "--cpuset-mems", "0", "--", *SLEEP
    )
    status = live.status()
    assert status["Cpus_allowed_list"] == str(last)
    assert status.get("Mems_allowed_list", "0") == "0"
    assert limit(live, "cpuset.cpus", "cpuset.cpus") == str(last)


@pytest.mark.skipif(not CPUSETS, reason="this kernel has no cpusets")
def test_one_of_both_halves_of_a_cpuset_is_enough(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--cpuset-mems", "0", "--", *SLEEP)
    assert len(os.sched_getaffinity(live.pid)) == len(os.sched_getaffinity(0))


def test_a_partition_is_refused_and_its_disk_named(cli: Cli) -> None:
    partitions = list(Path("/sys/class/block").glob("*/partition"))
    if not partitions:
        pytest.skip("no partition here")
    name = partitions[0].parent.name
    assert "whole disks" in cli.refused("run", "--io-max", f"/dev/{name} rbps=1m", "--", "true")


@pytest.mark.skipif(not CPUSETS, reason="this kernel has no cpusets")
def test_a_controller_that_version_1_cannot_add_is_refused(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    version = next(h.version for h in HIERARCHIES if "cpuset" in h.controllers)
    if version == 2:
        cli.ok("update", "--cpuset-cpus", "0", live.id)
        assert live.status()["Cpus_allowed_list"] == "0"
    else:
        complaint = cli.refused("update", "--cpuset-cpus", "0", live.id)
        assert "started without any cpuset limit" in complaint
