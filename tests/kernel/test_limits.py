"""Writing limits, reading them back and putting them back, in cgroups of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craterun.core.cgroups import Write, serving
from craterun.core.errors import LimitError, UsageError
from craterun.core.limit_files import Content, Kind
from craterun.core.limits import Limits
from craterun.core.units import new_id
from craterun.linux import cgroup, controllers, host, limits

pytestmark = pytest.mark.cgroup_v2

REAL = host.probe()
Make = Callable[[str], str]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes a cgroup, two levels deep, in the hierarchy that serves a controller."""
    made: list[str] = []

    def make_one(controller: str) -> str:
        hierarchy = serving(controller, REAL)
        if hierarchy is None:
            pytest.skip(f"this kernel has no {controller} controller")
        path = f"{hierarchy.top}/craterun-test-{new_id()}/inner"
        os.makedirs(path)
        made.extend((path, os.path.dirname(path)))
        if hierarchy.version == 2:
            controllers.enable(path, hierarchy.top, {controller: f"--{controller}"}, ())
        return path

    yield make_one
    assert cgroup.remove(made) == []


def write(directory: str, file: str, value: str, kind: Kind = "exact", **more: object) -> Write:
    content = Content(f"--{file}", file, value, kind, **more)  # type: ignore[arg-type]
    return Write(directory, content)


def text(directory: str, file: str) -> str:
    return Path(directory, file).read_text().strip()


def test_a_limit_is_written_and_can_be_undone(make: Make) -> None:
    here = make("pids")
    undo = limits.change([write(here, "pids.max", "7")])
    assert text(here, "pids.max") == "7"
    undo()
    assert text(here, "pids.max") == "max"


def test_what_was_written_before_a_refusal_is_put_back(make: Make) -> None:
    pids, cpu = make("pids"), make("cpu")
    limits.apply([write(pids, "pids.max", "5")])
    before = sorted((name, text(cpu, name)) for name in os.listdir(cpu) if name.startswith("cpu.m"))
    file = "cpu.max" if os.path.exists(f"{cpu}/cpu.max") else "cpu.cfs_quota_us"
    with pytest.raises(LimitError, match=f"{file}.*Invalid argument"):
        limits.change([write(pids, "pids.max", "7"), write(cpu, file, "1")])
    assert text(pids, "pids.max") == "5"
    assert before == sorted((n, text(cpu, n)) for n in os.listdir(cpu) if n.startswith("cpu.m"))


def test_a_value_that_the_kernel_changes_is_a_refusal(tmp_path: Path) -> None:
    # A file that keeps what it had beyond what is written plays a kernel that clamps.
    (tmp_path / "cpu.shares").write_text("1000")
    with pytest.raises(LimitError, match="wrote '2', but the kernel keeps '2000'") as caught:
        limits.apply([write(str(tmp_path), "cpu.shares", "2")])
    assert f"{tmp_path}/cpu.shares" in str(caught.value)


def test_an_absent_file_is_a_refusal_unless_nobody_asked_for_it(make: Make) -> None:
    here = make("pids")
    limits.apply([write(here, "pids.no-such", "1", optional=True)])
    with pytest.raises(LimitError, match=r"pids\.no-such: reboot"):
        limits.apply([write(here, "pids.no-such", "1", absent="reboot")])
    assert not os.path.exists(f"{here}/pids.no-such")


def test_a_cgroup_that_has_gone_is_not_blamed_on_the_limit(make: Make) -> None:
    here = make("pids")
    os.rmdir(here)
    with pytest.raises(FileNotFoundError):
        limits.change([write(here, "pids.max", "7")])


def test_a_protection_that_is_not_covered_above_is_refused(make: Make) -> None:
    here = make("memory")
    if not os.path.exists(f"{here}/memory.low"):
        pytest.skip("the memory controller is on version 1")
    with pytest.raises(LimitError, match=r"memory\.low is 0"):
        limits.apply([write(here, "memory.low", "4096", "bytes")])
    Path(here).parent.joinpath("memory.low").write_text("8192")
    limits.apply([write(here, "memory.low", "8192", "bytes")])


def test_a_parent_is_found_only_within_its_hierarchy(make: Make) -> None:
    here = make("pids")
    hierarchy = serving("pids", REAL)
    assert hierarchy is not None
    name = os.path.relpath(here, hierarchy.top)
    found = serving("pids", controllers.below(name, REAL))
    assert found is not None
    assert found.parent == name
    with pytest.raises(UsageError, match="does not exist"):
        controllers.below("no/such/cgroup", REAL)


def test_devices_are_looked_up_by_number_and_by_path() -> None:
    with pytest.raises(UsageError, match="not a block device"):
        limits.resolve_devices(Limits(io_max=("/dev/zero rbps=1m",)))
    assert limits.resolve_devices(Limits(pids=5)) == Limits(pids=5)
    disks = sorted(Path("/sys/block").glob("*/dev"))
    if disks:
        number = disks[0].read_text().strip()
        asked = Limits(io_max=(f"{number} rbps=1m",))
        assert limits.resolve_devices(asked) == asked
