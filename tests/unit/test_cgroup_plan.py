"""Which cgroup directories a container gets."""

from __future__ import annotations

from craterun.core.cgroups import PARENT, plan_cgroups
from craterun.core.spec import Hierarchy
from tests.unit.builders import CPU, DEVICES, ID, MEMORY, UNIFIED, make_host


def test_a_unified_host_gives_one_directory_to_be_born_in() -> None:
    plan = plan_cgroups(ID, make_host(hierarchies=(UNIFIED,)))
    assert plan.unified == f"/sys/fs/cgroup/unified/{PARENT}/{ID}"
    assert plan.legacy == ()
    assert plan.paths == (plan.unified,)


def test_a_hybrid_host_gives_one_in_each_hierarchy_that_accounts() -> None:
    plan = plan_cgroups(ID, make_host(hierarchies=(MEMORY, CPU, DEVICES, UNIFIED)))
    assert plan.unified == f"{UNIFIED.mountpoint}/{PARENT}/{ID}"
    assert plan.legacy == tuple(f"{h.mountpoint}/{PARENT}/{ID}" for h in (MEMORY, CPU))
    assert plan.paths == (plan.unified, *plan.legacy)


def test_a_hierarchy_that_accounts_nothing_is_left_alone() -> None:
    for controller in ("devices", "cpuset", "blkio"):
        hierarchy = Hierarchy(1, (controller,), "/x")
        assert plan_cgroups(ID, make_host(hierarchies=(hierarchy,))).paths == ()


def test_one_accounting_controller_among_several_suffices() -> None:
    hierarchy = Hierarchy(1, ("cpuset", "pids"), "/x")
    assert plan_cgroups(ID, make_host(hierarchies=(hierarchy,))).legacy == (f"/x/{PARENT}/{ID}",)


def test_a_host_without_cgroups_gives_none() -> None:
    plan = plan_cgroups(ID, make_host(hierarchies=()))
    assert (plan.unified, plan.legacy, plan.paths) == (None, (), ())


def test_a_mountpoint_with_blanks_is_kept_as_it_is() -> None:
    hierarchy = Hierarchy(2, (), "/mnt/my cgroups")
    plan = plan_cgroups(ID, make_host(hierarchies=(hierarchy,)))
    assert plan.unified == f"/mnt/my cgroups/{PARENT}/{ID}"


def test_two_containers_share_no_directory() -> None:
    host = make_host()
    one, other = plan_cgroups("0" * 16, host), plan_cgroups("1" * 16, host)
    assert not set(one.paths) & set(other.paths)


def test_the_v1_freezer_is_used_only_where_no_v2_hierarchy_can_freeze() -> None:
    freezer = Hierarchy(1, ("freezer",), "/f")
    assert plan_cgroups(ID, make_host(hierarchies=(freezer,))).paths == (f"/f/craterun/{ID}",)
    assert plan_cgroups(ID, make_host(hierarchies=(freezer, UNIFIED))).legacy == ()
