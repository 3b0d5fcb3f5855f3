"""What a host can do, from the texts in which its kernel says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from craterun.core.spec import Hierarchy
from craterun.linux import host
from craterun.linux.host import hierarchies, in_user_namespace, is_bearer_of, kernel_version
from craterun.linux.proc import Mount, parse_mountinfo


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.12", (5, 12)),
        ("5.4.0+", (5, 4)),
        ("10.0-rc1", (10, 0)),
        ("6.18.44-fc-v657", (6, 18)),
        ("", (0, 0)),
        ("six", (0, 0)),
    ],
)
def test_a_release_is_read_as_major_and_minor(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_versions_are_compared_as_numbers() -> None:
    assert kernel_version("5.9.1") < host.MINIMUM_KERNEL <= kernel_version("5.12.0")


@pytest.mark.parametrize(
    ("uid_map", "inside"),
    [
        ("         0          0 4294967295\n", False),
        ("0 0 4294967295", False),
        ("         0       1000          1\n", True),
        ("0 0 65536", True),
        ("0 1000 1\n1 100000 65536\n", True),
        ("0 0 1\n1 1 4294967294\n", True),
        ("", True),
    ],
)
def test_only_the_identity_map_is_the_initial_user_namespace(uid_map: str, inside: bool) -> None:
    assert in_user_namespace(uid_map) == inside


# --- hierarchies ----------------------------------------------------------------------------------


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    for name in ("unified", "memory", "cpu", "systemd", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("")
    (tmp_path / "unified" / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "second" / "cgroup.controllers").write_text("\n")
    return tmp_path


def line(kind: str, point: Path, options: str = "rw", mount: str = "rw", root: str = "/") -> Mount:
    (parsed,) = parse_mountinfo(
        f"31 23 0:28 {root} {point} {mount},nosuid - {kind} {kind} {options}"
    )
    return parsed


def test_a_version_2_hierarchy_has_the_controllers_that_it_offers(cgroups: Path) -> None:
    found = hierarchies([line("cgroup2", cgroups / "unified", "rw,nsdelegate")])
    offered = ("cpuset", "cpu", "io", "memory", "pids")
    assert found == (Hierarchy(2, offered, str(cgroups / "unified")),)


def test_a_version_1_hierarchy_has_the_controllers_that_it_was_mounted_with(cgroups: Path) -> None:
    found = hierarchies(
        [
            line("cgroup", cgroups / "memory", "rw,memory"),
            line("cgroup", cgroups / "cpu", "rw,xattr,cpu,cpuacct"),
        ]
    )
    assert found == (
        Hierarchy(1, ("memory",), str(cgroups / "memory")),
        Hierarchy(1, ("cpu", "cpuacct"), str(cgroups / "cpu")),
    )


def test_a_named_hierarchy_and_other_filesystems_are_none(cgroups: Path) -> None:
    mounts = [
        line("cgroup", cgroups / "systemd", "rw,name=systemd"),
        line("tmpfs", cgroups / "memory", "rw,memory"),
    ]
    assert hierarchies(mounts) == ()


def test_a_hierarchy_without_controllers_can_still_be_born_in(cgroups: Path) -> None:
    found = hierarchies([line("cgroup2", cgroups / "second")])
    assert found == (Hierarchy(2, (), str(cgroups / "second")),)


def test_the_first_of_two_mounts_of_one_hierarchy_counts(cgroups: Path) -> None:
    mounts = [
        line("cgroup2", cgroups / "unified"),
        line("cgroup2", cgroups / "second"),
        line("cgroup", cgroups / "memory", "rw,memory"),
        line("cgroup", cgroups / "cpu", "rw,memory"),
    ]
    found = [hierarchy.mountpoint for hierarchy in hierarchies(mounts)]
    assert found == [str(cgroups / "unified"), str(cgroups / "memory")]


def test_a_hierarchy_that_cannot_be_written_to_is_left_out(cgroups: Path) -> None:
    mounts = [
        line("cgroup2", cgroups / "unified", mount="ro"),
        line("cgroup", cgroups / "nowhere", "rw,memory"),
        line("cgroup2", cgroups / "second"),
    ]
    assert [hierarchy.mountpoint for hierarchy in hierarchies(mounts)] == [str(cgroups / "second")]


def test_a_hierarchy_hidden_below_another_mount_is_left_out(cgroups: Path) -> None:
    for name in ("unified", "memory"):
        (cgroups / name / "cgroup.procs").unlink()
    mounts = [
        line("cgroup2", cgroups / "unified"),
        line("cgroup", cgroups / "memory", "rw,memory"),
        line("cgroup", cgroups / "cpu", "rw,cpu"),
    ]
    assert [hierarchy.mountpoint for hierarchy in hierarchies(mounts)] == [str(cgroups / "cpu")]


def test_a_mount_of_a_part_of_a_hierarchy_is_left_out(cgroups: Path) -> None:
    # Inside another container: /proc/PID/cgroup speaks of paths that are not found here.
    mounts = [
        line("cgroup", cgroups / "memory", "rw,memory", root="/docker/0123"),
        line("cgroup2", cgroups / "unified", root="/docker/0123"),
    ]
    assert hierarchies(mounts) == ()


# --- delegation -----------------------------------------------------------------------------------


@pytest.fixture
def delegated(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version 2 hierarchy whose root is not ours, but whose cgroup /user/a.scope is."""
    scope = cgroups / "unified" / "user" / "a.scope"
    scope.mkdir(parents=True)
    (scope / "cgroup.controllers").write_text("memory pids\n")

    def access(path: str, mode: int) -> bool:
        return path.startswith(str(scope))

    monkeypatch.setattr("os.access", access)
    return cgroups / "unified"


@pytest.mark.parametrize("own", ["/user/a.scope", "/user/a.scope/craterun.supervisor"])
def test_a_delegated_cgroup_is_found_from_within_and_from_its_leaf(
    delegated: Path, own: str
) -> None:
    (found,) = hierarchies([line("cgroup2", delegated)], own)
    assert found == Hierarchy(2, ("memory", "pids"), str(delegated), "/user/a.scope")
    assert found.top == f"{delegated}/user/a.scope"


@pytest.mark.parametrize("own", ["/", "/user", "/user/b.scope", "/craterun.supervisor"])
def test_what_belongs_to_somebody_else_is_not_used(delegated: Path, own: str) -> None:
    assert hierarchies([line("cgroup2", delegated)], own) == ()


def test_version_1_is_never_delegated(delegated: Path, cgroups: Path) -> None:
    assert hierarchies([line("cgroup", cgroups / "memory", "rw,memory")], "/user/a.scope") == ()


def test_an_identity_map_in_another_user_namespace_is_none() -> None:
    assert in_user_namespace("0 0 4294967295", 4026532000)
    assert not in_user_namespace("0 0 4294967295", 4026531837)


def test_a_capability_is_held_if_it_is_effective() -> None:
    status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000040001\n"
    assert [is_bearer_of(number, status) for number in (0, 1, 18, 21)] == [True, False] * 2
