"""The freezer's ways to fail, which a real kernel seldom shows: files play the cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from craterun.client import pausing
from craterun.core.errors import (
    ContainerNotPausedError,
    ContainerNotRunningError,
    ContainerPausedError,
    CraterunError,
    UnsupportedHostError,
)
from craterun.linux.freezer import Freezer, find, is_frozen, release_killed
from craterun.linux.placement import Placement, own_part
from tests.unit.builders import ID, make_record


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A version 2 cgroup whose processes neither stop nor go on."""
    path = tmp_path / "above" / "own"
    path.mkdir(parents=True)
    (path / "cgroup.freeze").write_text("0\n")
    (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return path


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A version 1 cgroup whose processes do not stop."""
    path = tmp_path / "v1"
    path.mkdir()
    (path / "freezer.state").write_text("FREEZING\n")
    (path / "freezer.self_freezing").write_text("0\n")
    (path / "freezer.parent_freezing").write_text("0\n")
    return path


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, v2: Path) -> Path:
    """The cgroup of every container; nobody is waited for."""
    monkeypatch.setattr(pausing, "placed", lambda record: Placement(unified=str(v2)))
    monkeypatch.setattr(pausing, "FREEZE_SECONDS", 0.0)
    return v2


def test_processes_that_do_not_stop_in_time_all_go_on(v2: Path, v1: Path) -> None:
    with pytest.raises(TimeoutError):
        Freezer(str(v2), 2).freeze(0)
    assert (v2 / "cgroup.freeze").read_text() == "0\n"
    with pytest.raises(TimeoutError):
        Freezer(str(v1), 1).freeze(0)
    assert (v1 / "freezer.state").read_text().startswith("THAWED")


def test_the_failure_says_what_hangs_and_that_it_goes_on(placed: Path) -> None:
    with pytest.raises(CraterunError, match="one of its processes did not stop within 0 s; the"):
        pausing.pause(make_record())
    assert (placed / "cgroup.freeze").read_text() == "0\n"


def test_paused_from_above_is_told_apart(placed: Path) -> None:
    (placed / "cgroup.events").write_text("frozen 1\n")
    (placed.parent / "cgroup.events").write_text("frozen 1\n")
    with pytest.raises(ContainerPausedError, match=f"already paused, through {placed.parent}"):
        pausing.pause(make_record())
    with pytest.raises(CraterunError, match=f"stays paused: the cgroup above it, {placed.parent}"):
        pausing.unpause(make_record())
    pausing.wake(make_record())  # never fails


def test_a_pause_that_was_broken_off_can_be_completed_or_undone(placed: Path) -> None:
    (placed / "cgroup.freeze").write_text("1\n")  # asked for, and not all have stopped
    with pytest.raises(CraterunError, match="did not stop"):
        pausing.pause(make_record())
    (placed / "cgroup.freeze").write_text("1\n")
    pausing.unpause(make_record())
    assert (placed / "cgroup.freeze").read_text() == "0\n"
    with pytest.raises(ContainerNotPausedError):
        pausing.unpause(make_record())


def test_a_cgroup_that_goes_away_means_an_end(placed: Path) -> None:
    (placed / "cgroup.events").unlink()
    with pytest.raises(ContainerNotRunningError):
        pausing.pause(make_record())
    with pytest.raises(ContainerNotRunningError):
        pausing.unpause(make_record())


def test_no_cgroup_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "placed", lambda record: Placement())
    monkeypatch.setattr(pausing, "hierarchies", lambda: ())
    with pytest.raises(UnsupportedHostError, match="run craterun as root"):
        pausing.pause(make_record())


def test_a_v2_hierarchy_is_preferred_and_an_old_kernels_is_not_one(v2: Path, v1: Path) -> None:
    both = Placement(str(v2), {"freezer": str(v1)})
    found = find(both)
    assert found is not None
    assert found.version == 2
    (v2 / "cgroup.freeze").unlink()  # before Linux 5.2
    found = find(both)
    assert found is not None
    assert found.version == 1
    assert find(Placement()) is None
    assert not is_frozen(Placement(str(v2 / "missing")))


def test_only_version_1_needs_a_thaw_to_die(v2: Path, v1: Path, tmp_path: Path) -> None:
    release_killed([str(v2), str(tmp_path / "missing"), str(v1)])
    assert (v1 / "freezer.state").read_text().startswith("THAWED")
    assert (v2 / "cgroup.freeze").read_text() == "0\n"


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"/craterun/{ID}", f"/craterun/{ID}"),
        (f"/a/b/{ID}/nested/{ID}/x", f"/a/b/{ID}"),
        (f"/craterun/{ID}x", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_directory_named_after_the_container_is_its_own(path: str, own: str | None) -> None:
    assert own_part(path, ID) == own
