"""Which cgroup directories a container gets."""

from __future__ import annotations

import pytest

from craterun.core.cgroups import (
    PARENT,
    CgroupPlan,
    exec_parent,
    plan_cgroups,
    plan_writes,
    possible_paths,
)
from craterun.core.errors import LimitError
from craterun.core.limits import Limits
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
        plan = plan_cgroups(ID, make_host(hierarchies=(hierarchy, UNIFIED)))
        assert (plan.legacy, plan.writes, plan.cpusets) == ((), (), ())


def test_without_version_2_the_freezer_pauses() -> None:
    hierarchy = Hierarchy(1, ("freezer",), "/x")
    assert plan_cgroups(ID, make_host(hierarchies=(hierarchy,))).legacy == (f"/x/{PARENT}/{ID}",)


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


# --- limits ---------------------------------------------------------------------------------------

SECOND = Hierarchy(2, ("cpuset", "cpu", "io", "memory", "pids"), "/sys/fs/cgroup")
CPUSET = Hierarchy(1, ("cpuset",), "/v1/cpuset")
BLKIO = Hierarchy(1, ("blkio",), "/v1/blkio")
PIDS_ON_2 = Hierarchy(2, ("pids",), "/v2")
ALL = Limits(memory=1 << 20, pids=5, cpu_quota=5000, cpuset_cpus="0", io_max=("8:0 rbps=1m",))


def paths_written(plan: CgroupPlan) -> set[str]:
    return {write.path for write in plan.writes}


def test_on_version_2_all_limits_go_to_one_directory() -> None:
    plan = plan_cgroups(ID, make_host(hierarchies=(SECOND,)), ALL)
    where = f"/sys/fs/cgroup/{PARENT}/{ID}"
    assert (plan.unified, plan.legacy, plan.top) == (where, (), "/sys/fs/cgroup")
    assert paths_written(plan) == {
        f"{where}/{name}"
        for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpuset.cpus",
                     "io.max")
    }  # fmt: skip
    assert set(plan.needed) == {"memory", "pids", "cpu", "cpuset", "io"}
    assert plan.needed["cpuset"] == "--cpuset-cpus"


def test_without_limits_nothing_is_written_and_only_accounting_enabled() -> None:
    plan = plan_cgroups(ID, make_host(hierarchies=(SECOND,)))
    assert (plan.writes, plan.needed, plan.cpusets) == ((), {}, ())
    assert plan.welcome == ("memory", "cpu", "pids")


def test_on_a_hybrid_host_each_limit_goes_where_its_controller_is() -> None:
    host = make_host(hierarchies=(MEMORY, CPU, CPUSET, BLKIO, PIDS_ON_2))
    plan = plan_cgroups(ID, host, ALL)
    tail = f"{PARENT}/{ID}"
    assert plan.unified == f"/v2/{tail}"
    assert paths_written(plan) == {
        f"{MEMORY.mountpoint}/{tail}/memory.limit_in_bytes",
        f"{MEMORY.mountpoint}/{tail}/memory.memsw.limit_in_bytes",
        f"{CPU.mountpoint}/{tail}/cpu.cfs_period_us",
        f"{CPU.mountpoint}/{tail}/cpu.cfs_quota_us",
        f"/v1/cpuset/{tail}/cpuset.cpus",
        f"/v1/blkio/{tail}/blkio.throttle.read_bps_device",
        f"/v2/{tail}/pids.max",
    }
    assert plan.cpusets == (f"/v1/cpuset/{tail}",)
    assert set(plan.needed) == {"pids"}


@pytest.mark.parametrize(
    ("limits", "hierarchies", "words"),
    [
        (Limits(memory=1 << 20), (CPU, UNIFIED), ("--memory", "cgroup_disable=memory")),
        (Limits(io_weight=5), (MEMORY,), ("--io-weight", "cgroup_disable=blkio")),
        (Limits(pids=5), (), ("--pids", "no cgroup hierarchy is mounted")),
        (Limits(oom_group=True), (MEMORY,), ("--oom-group", "version 1")),
        (Limits(cpuset_mems="0"), (Hierarchy(2, ("pids",), "/v2", "/a.scope"),),
         ("--cpuset-mems", "Delegate=yes")),
    ],
)  # fmt: skip
def test_a_limit_that_no_hierarchy_can_enforce_is_refused(
    limits: Limits, hierarchies: tuple[Hierarchy, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(LimitError) as caught:
        plan_cgroups(ID, make_host(hierarchies=hierarchies), limits)
    for word in words:
        assert word in str(caught.value)


def test_without_root_the_remedy_is_delegation() -> None:
    with pytest.raises(LimitError, match="systemd-run --user"):
        plan_cgroups(ID, make_host(hierarchies=(), user_namespace=True), Limits(pids=5))


def test_a_delegated_cgroup_is_where_everything_begins() -> None:
    delegated = Hierarchy(2, ("pids",), "/sys/fs/cgroup", "/user.slice/a.scope")
    plan = plan_cgroups(ID, make_host(hierarchies=(delegated,)), Limits(pids=5))
    assert plan.top == "/sys/fs/cgroup/user.slice/a.scope"
    assert plan.unified == f"{plan.top}/{PARENT}/{ID}"


def test_a_running_container_cannot_be_given_a_version_1_controller() -> None:
    host = make_host(hierarchies=(MEMORY, CPUSET))
    paths = plan_cgroups(ID, host).paths
    with pytest.raises(LimitError, match="started without any cpuset limit"):
        plan_writes(paths, host, Limits(cpuset_cpus="0"))
    assert plan_writes(paths, host, Limits(memory=1 << 20))


def test_of_a_record_only_plausible_paths_are_believed() -> None:
    host = make_host(hierarchies=(MEMORY,))
    good = f"{MEMORY.mountpoint}/build/{ID}"
    recorded = (
        good,
        f"/tmp/{ID}",
        f"{MEMORY.mountpoint}/../../etc/{ID}",
        f"{MEMORY.mountpoint}/system.slice",
    )
    assert possible_paths(ID, host, recorded) == (f"{MEMORY.mountpoint}/{PARENT}/{ID}", good)


def test_the_v1_freezer_is_used_only_where_no_v2_hierarchy_can_freeze() -> None:
    freezer = Hierarchy(1, ("freezer",), "/f")
    assert plan_cgroups(ID, make_host(hierarchies=(freezer,))).paths == (f"/f/craterun/{ID}",)
    assert plan_cgroups(ID, make_host(hierarchies=(freezer, UNIFIED))).legacy == ()


# --- an exec's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hierarchies", "wanted"),
    [
        ((UNIFIED,), UNIFIED.mountpoint),
        ((Hierarchy(1, ("freezer",), "/f"), MEMORY, UNIFIED), UNIFIED.mountpoint),
        ((MEMORY, Hierarchy(1, ("pids",), "/p"), Hierarchy(1, ("freezer",), "/f")), "/f"),
        ((MEMORY, Hierarchy(1, ("pids",), "/p")), "/p"),
        ((Hierarchy(1, ("cpuset", "freezer"), "/f"), Hierarchy(1, ("pids",), "/p")), "/p"),
        ((MEMORY, CPU), None),
        ((), None),
    ],
)
def test_an_exec_gets_a_cgroup_where_that_changes_nothing_else(
    hierarchies: tuple[Hierarchy, ...], wanted: str | None
) -> None:
    host = make_host(hierarchies=hierarchies)
    parent = exec_parent(plan_cgroups(ID, host), host, ID)
    assert parent == (None if wanted is None else f"{wanted}/{PARENT}/{ID}")


def test_an_exec_gets_none_below_a_cgroup_that_is_not_the_containers_own() -> None:
    host = make_host(hierarchies=(UNIFIED,))
    shared = CgroupPlan(f"{UNIFIED.mountpoint}/user.slice", ())
    assert exec_parent(shared, host, ID) is None
