"""The freezers of the real kernel, on a process of the tests' own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.core.units import new_id
from craterun.linux import cgroup, host
from craterun.linux.freezer import Freezer, Frost
from craterun.linux.placement import locate
from tests.kernel.forked import parked

SECONDS = 60.0
HIERARCHIES = [
    hierarchy
    for hierarchy in host.probe().hierarchies
    if hierarchy.version == 2 or "freezer" in hierarchy.controllers
]

pytestmark = pytest.mark.cgroup_v2


@pytest.fixture(params=HIERARCHIES, ids=lambda hierarchy: f"v{hierarchy.version}")
def above(request: pytest.FixtureRequest) -> Iterator[Freezer]:
    """A cgroup that the tests may freeze, empty."""
    path = f"{request.param.mountpoint}/craterun-test-{new_id()}"
    os.mkdir(path)
    yield Freezer(path, request.param.version)
    assert cgroup.remove([path]) == []


@pytest.fixture
def own(above: Freezer) -> Freezer:
    """One below."""
    os.mkdir(f"{above.path}/own")
    return Freezer(f"{above.path}/own", above.version)


def enter(freezer: Freezer) -> None:
    Path(freezer.path, "cgroup.procs").write_text("0")


def test_freeze_returns_when_all_have_stopped_and_thaw_when_they_go_on(own: Freezer) -> None:
    with parked(lambda: enter(own)) as pid:
        assert own.state() == Frost(asked=False, complete=False)
        own.freeze(SECONDS)
        assert own.state() == Frost(asked=True, complete=True)
        own.freeze(SECONDS)  # again: no change is waited for
        own.thaw(SECONDS)
        assert own.state() == Frost(asked=False, complete=False)
        own.thaw(SECONDS)
        os.kill(pid, signal.SIGKILL)


def test_frozen_from_above_is_no_wish_of_its_own(above: Freezer, own: Freezer) -> None:
    with parked(lambda: enter(own)) as pid:
        above.freeze(SECONDS)
        assert own.state() == Frost(asked=False, complete=True)
        assert own.frozen_from_above()
        assert not above.frozen_from_above()
        own.freeze(SECONDS)
        own.thaw(SECONDS)  # returns, though its process stays stopped
        assert own.state() == Frost(asked=False, complete=True)
        above.thaw(SECONDS)
        assert own.state() == Frost(asked=False, complete=False)
        os.kill(pid, signal.SIGKILL)


def test_a_process_that_goes_on_and_ends_has_gone_on(own: Freezer) -> None:
    """The cgroup may vanish as soon as it is thawed, which is no failure to thaw it."""
    for _ in range(20):
        with parked(lambda: enter(own)) as pid:
            own.freeze(SECONDS)
            os.kill(pid, signal.SIGTERM)
            remover = os.fork()
            if remover == 0:
                _remove_when_empty(own.path)
            own.thaw(SECONDS)
            os.waitpid(remover, 0)
        os.mkdir(own.path)


def _remove_when_empty(path: str) -> None:
    """For a child: what a supervisor does, as fast as it can be done."""
    while True:
        try:
            os.rmdir(path)
            os._exit(0)
        except OSError:
            os.sched_yield()


def test_what_was_removed_is_not_found(own: Freezer) -> None:
    os.rmdir(own.path)
    own.thaw(1)  # whatever was stopped in there went on, and to its end
    for action in (own.state, own.is_frozen, lambda: own.freeze(1)):
        with pytest.raises(FileNotFoundError):
            action()


def test_the_kernel_tells_where_a_process_is(above: Freezer) -> None:
    container_id = new_id()
    own = f"{above.path}/{container_id}"
    os.makedirs(f"{own}/nested")
    with parked(lambda: enter(Freezer(f"{own}/nested", above.version))) as pid:
        found = locate(container_id, pid, HIERARCHIES)
        assert own in (found.unified, *found.legacy.values())
        assert locate(new_id(), pid, HIERARCHIES) == locate(new_id(), None, HIERARCHIES)
        os.kill(pid, signal.SIGKILL)
