"""What only version 1 does with limits: the guest of the cgroup v2 tier has no part in it."""

from __future__ import annotations

import os

import pytest

from craterun.core.cgroups import CgroupPlan, serving
from craterun.core.errors import LimitError
from craterun.core.spec import Hierarchy
from craterun.linux import controllers, limits
from tests.kernel import test_limits as common
from tests.kernel.test_limits import REAL, Make, text, write

make = common.make


def test_version_1_clamps_shares_and_that_is_noticed(make: Make) -> None:
    here = make("cpu")
    if not os.path.exists(f"{here}/cpu.shares"):
        pytest.skip("the cpu controller is on version 2")
    with pytest.raises(LimitError, match="wrote '1', but the kernel keeps '2'"):
        limits.apply([write(here, "cpu.shares", "1")])


def test_an_empty_cpuset_gets_what_its_parent_has(make: Make) -> None:
    here = make("cpuset")
    if os.path.exists(f"{here}/cpuset.cpus.effective"):
        pytest.skip("the cpuset controller is on version 2, where empty means all")
    assert text(here, "cpuset.cpus") == ""
    controllers.fill_cpusets(CgroupPlan(None, (here,), cpusets=(here,)))
    hierarchy = serving("cpuset", REAL)
    assert isinstance(hierarchy, Hierarchy)
    for file in ("cpuset.cpus", "cpuset.mems"):
        assert text(here, file) == text(hierarchy.mountpoint, file) != ""
