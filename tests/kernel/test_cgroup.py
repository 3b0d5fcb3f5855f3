"""Cgroups of the real kernel, below a directory of the tests' own in each hierarchy.

A subdirectory plays the mount point, so that containers that run meanwhile are not disturbed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from craterun.core.cgroups import PARENT, CgroupPlan, plan_cgroups
from craterun.core.errors import KernelRefusedError
from craterun.core.spec import Hierarchy, HostFacts
from craterun.core.units import new_id
from craterun.linux import calls, cgroup, emptying, host
from tests.kernel.forked import parked

REAL = host.probe()


@pytest.fixture
def facts() -> Iterator[HostFacts]:
    """The host, with hierarchies that begin at a directory of this test's own."""
    mine = f"craterun-test-{new_id()}"
    found: list[Hierarchy] = []
    used = plan_cgroups("x", REAL).paths
    for real in REAL.hierarchies:
        here = f"{real.mountpoint}/{mine}"
        if any(path.startswith(f"{real.top}/") for path in used):
            os.mkdir(here)
            found.append(real._replace(mountpoint=here))
    yield msgspec.structs.replace(REAL, hierarchies=tuple(found))
    assert cgroup.remove([hierarchy.mountpoint for hierarchy in found]) == []


@pytest.fixture
def plan(facts: HostFacts) -> CgroupPlan:
    """Cgroups of a container, created."""
    made = plan_cgroups(new_id(), facts)
    assert made.paths, "this host has no cgroups: these tests would hold for no reason"
    cgroup.create(made)
    return made


def enter(path: str) -> None:
    """For a child: move into a cgroup."""
    with open(f"{path}/cgroup.procs", "w") as file:
        file.write("0")


def enter_all(plan: CgroupPlan) -> None:
    for path in plan.paths:
        enter(path)


def wait_for_death(pid: int) -> int:
    """The signal that killed a child, which stays to be reaped."""
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert result is not None
    assert result.si_code == os.CLD_KILLED
    return result.si_status


def exist(plan: CgroupPlan) -> list[bool]:
    return [os.path.isdir(path) for path in plan.paths]


# --- making and removing --------------------------------------------------------------------------


def test_all_directories_are_made_and_are_cgroups(plan: CgroupPlan) -> None:
    for path in plan.paths:
        assert cgroup.processes(path) == []
        assert Path(path, "cgroup.procs").exists()


def test_removed_is_removed(plan: CgroupPlan) -> None:
    assert cgroup.remove(plan.paths) == []
    assert not any(exist(plan))


def test_what_is_gone_counts_as_removed(plan: CgroupPlan) -> None:
    assert cgroup.remove(plan.paths) == []
    assert cgroup.remove(plan.paths) == []


def test_of_several_directories_all_are_made_or_none(facts: HostFacts) -> None:
    good = plan_cgroups(new_id(), facts)
    bad = CgroupPlan(good.unified, (*good.legacy, "/proc/self/nowhere/x"))
    with pytest.raises(KernelRefusedError, match="/proc/self/nowhere/x") as caught:
        cgroup.create(bad)
    assert (caught.value.call, caught.value.exit_code) == ("mkdir", 125)
    assert not any(exist(good))


def test_somebody_elses_directory_is_refused_and_stays(plan: CgroupPlan) -> None:
    with pytest.raises(KernelRefusedError, match="File exists"):
        cgroup.create(plan)
    assert all(exist(plan))


def test_a_parent_goes_with_the_last_container_and_not_before(facts: HostFacts) -> None:
    first, second = plan_cgroups(new_id(), facts), plan_cgroups(new_id(), facts)
    parents = [f"{hierarchy.mountpoint}/{PARENT}" for hierarchy in facts.hierarchies]
    cgroup.create(first)
    cgroup.create(second)
    cgroup.remove(first.paths)
    cgroup.remove_parents(facts)
    assert all(os.path.isdir(parent) for parent in parents)
    assert all(exist(second))
    cgroup.remove(second.paths)
    cgroup.remove_parents(facts)
    assert not any(os.path.isdir(parent) for parent in parents)
    cgroup.remove_parents(facts)


def test_a_parent_that_vanishes_while_it_is_needed_is_made_again(
    facts: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_cgroups(new_id(), facts)
    mkdir, vanished = os.mkdir, []

    def mkdir_and_lose(path: str) -> None:
        mkdir(path)
        if os.path.basename(path) == PARENT and path not in vanished:
            vanished.append(path)
            os.rmdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir_and_lose)
        cgroup.create(plan)
    assert len(vanished) == len(plan.paths)
    assert all(exist(plan))


def test_cgroups_that_the_container_made_itself_go_before_their_parent(plan: CgroupPlan) -> None:
    for path in plan.paths:
        os.makedirs(f"{path}/a/b/c")
        os.mkdir(f"{path}/d")
    assert cgroup.remove(plan.paths) == []
    assert not any(exist(plan))


# --- processes ------------------------------------------------------------------------------------


def test_a_cgroup_in_use_is_left_and_said_to_be(plan: CgroupPlan) -> None:
    with parked(partial(enter_all, plan)) as pid:
        for path in plan.paths:
            assert cgroup.processes(path) == [pid]
        assert cgroup.remove(plan.paths) == list(plan.paths)
        assert all(exist(plan))
    assert cgroup.remove(plan.paths) == []


def test_a_process_deep_inside_keeps_all_above_it(plan: CgroupPlan) -> None:
    deep = f"{plan.paths[0]}/a/b"
    os.makedirs(deep)
    with parked(partial(enter, deep)) as pid:
        assert cgroup.processes(deep) == [pid]
        assert cgroup.processes(plan.paths[0]) == []
        assert cgroup.remove(plan.paths[:1]) == [plan.paths[0]]
        assert os.path.isdir(deep)
    assert cgroup.remove(plan.paths) == []


def test_killing_reaches_every_process_inside_and_none_outside(plan: CgroupPlan) -> None:
    for path in plan.paths:
        with parked() as outside:
            with parked(partial(enter, path)) as one, parked(partial(enter, path)) as other:
                assert sorted(cgroup.processes(path)) == sorted([one, other])
                cgroup.kill([path])
                assert [wait_for_death(pid) for pid in (one, other)] == [signal.SIGKILL] * 2
            os.kill(outside, 0)
            assert os.waitpid(outside, os.WNOHANG) == (0, 0)
    assert cgroup.remove(plan.paths) == []


def test_after_killing_the_cgroup_can_be_removed_at_once(plan: CgroupPlan) -> None:
    with parked(partial(enter_all, plan)), parked(partial(enter_all, plan)):
        cgroup.kill(plan.paths)
        assert [cgroup.processes(path) for path in plan.paths] == [[]] * len(plan.paths)
        assert cgroup.remove(plan.paths) == []


def test_a_pid_that_has_been_reused_since_it_was_listed_is_not_killed(
    plan: CgroupPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was in the cgroup when that was read, and is somebody else's when it is opened.
    listed = cgroup.processes
    with parked() as innocent:
        stale = [[innocent]]
        with monkeypatch.context() as patch:
            patch.setattr(
                emptying, "processes", lambda path: stale.pop() if stale else listed(path)
            )
            cgroup.kill(plan.paths)
        assert not stale, "nobody looked: this test shows nothing"
        assert os.waitid(os.P_PID, innocent, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    assert cgroup.remove(plan.paths) == []


def test_killing_a_version_2_cgroup_reaches_those_below_it(plan: CgroupPlan) -> None:
    if plan.unified is None:
        pytest.skip("no version 2 hierarchy is mounted here")
    deep = f"{plan.unified}/a/b"
    os.makedirs(deep)
    with parked(partial(enter, deep)) as pid:
        cgroup.kill([plan.unified])
        with open(f"{plan.unified}/cgroup.events") as events:
            assert "populated 0" in events.read(), "it did not wait for the end of what it killed"
        assert wait_for_death(pid) == signal.SIGKILL
    assert cgroup.remove(plan.paths) == []


def test_what_is_over_is_removed_with_what_is_below_it_in_every_hierarchy(plan: CgroupPlan) -> None:
    for path in plan.paths:
        os.makedirs(f"{path}/a/b")
        with parked(partial(enter, f"{path}/a/b")) as pid, parked(partial(enter, path)) as other:
            assert cgroup.end([path]) == []
            assert [wait_for_death(one) for one in (pid, other)] == [signal.SIGKILL] * 2
        assert not os.path.isdir(path)


def test_a_cgroup_is_dissolved_into_the_one_above(plan: CgroupPlan) -> None:
    for path in plan.paths:
        below = f"{path}/below"
        os.mkdir(below)
        with parked(partial(enter, below)) as one, parked(partial(enter, below)) as other:
            assert emptying.dissolve(below)
            assert not os.path.isdir(below)
            assert sorted(cgroup.processes(path)) == sorted([one, other])
            assert os.waitpid(one, os.WNOHANG) == (0, 0)
        assert emptying.dissolve(below)  # it is gone: nothing to be done
    assert cgroup.remove(plan.paths) == []


def test_somebody_else_may_remove_what_is_below_meanwhile(
    plan: CgroupPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As an exec's supervisor does when its container ends, whose own has to go all the same.
    for path in plan.paths:
        os.mkdir(f"{path}/exec")
    listed = emptying._children

    def list_and_lose(path: str) -> list[str]:
        found = listed(path)
        for child in found:
            os.rmdir(child)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(emptying, "_children", list_and_lose)
        assert cgroup.remove(plan.paths) == []
    assert not any(exist(plan))


def test_killing_what_is_empty_or_gone_is_no_error(plan: CgroupPlan) -> None:
    cgroup.kill(plan.paths)
    cgroup.remove(plan.paths)
    cgroup.kill(plan.paths)
    assert [cgroup.processes(path) for path in plan.paths] == [[]] * len(plan.paths)


def test_a_process_is_born_in_the_cgroup_that_it_was_cloned_into(plan: CgroupPlan) -> None:
    if plan.unified is None:
        pytest.skip("no version 2 hierarchy is mounted here")
    fd = os.open(plan.unified, os.O_RDONLY | os.O_DIRECTORY)
    ready, tell = os.pipe()
    pid, pidfd = calls.clone3(0, fd)
    if pid == 0:
        with open("/proc/self/cgroup") as file:
            os.write(tell, file.read().encode())
        os._exit(0)
    os.close(tell)
    with open(ready) as pipe:
        seen = pipe.read()
    os.waitpid(pid, 0)
    os.close(pidfd)
    os.close(fd)
    (line,) = (line for line in seen.splitlines() if line.startswith("0::"))
    assert plan.unified.endswith(line.removeprefix("0::"))
    assert cgroup.remove(plan.paths) == []


# --- whose ----------------------------------------------------------------------------------------


def test_the_cgroups_of_a_process_are_those_that_it_entered(plan: CgroupPlan) -> None:
    with parked(partial(enter_all, plan)) as pid:
        found = cgroup.of_process(pid, REAL, os.path.basename(plan.paths[0]))
    assert (found.unified, found.legacy) == (plan.unified, plan.legacy)
    assert cgroup.remove(plan.paths) == []


def test_a_process_outside_of_containers_is_in_none_of_ours() -> None:
    found = cgroup.of_process(os.getpid(), REAL, new_id())
    assert found.legacy == ()
    if found.unified is not None:
        assert os.getpid() in cgroup.processes(found.unified)


def test_a_dead_process_is_in_no_cgroup() -> None:
    with parked() as pid:
        pass
    with pytest.raises(ProcessLookupError):
        cgroup.of_process(pid, REAL, new_id())
