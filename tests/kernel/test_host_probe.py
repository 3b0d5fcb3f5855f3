"""What the probe finds on the host that runs these tests, and on one that is odd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from craterun.core.errors import UnsupportedHostError
from craterun.core.spec import HostFacts
from craterun.linux import host
from tests.kernel.forked import enter_new, in_child, mount_tmpfs, private_mounts

STRANGE_NAMES = (
    b"a b", b"tab\there", b"line\nend", b"back\\slash", b"\\040", b"form\x0cfeed", b"re\rturn",
    b"#",
)  # fmt: skip


def test_the_facts_are_those_of_this_host() -> None:
    facts = host.probe()
    assert ".".join(map(str, facts.kernel)) == ".".join(os.uname().release.split(".")[:2])
    assert facts.last_capability == int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert "bin" in dict(facts.usr_entries)


def test_top_level_directories_are_links_or_directories_as_they_are_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "USR_NAMES", ("proc", "no such name", "proc/self", "etc/passwd"))
    assert host.probe().usr_entries == (("proc", ""), ("proc/self", str(os.getpid())))


def test_of_etc_there_is_what_exists_with_directories_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "ETC_NAMES", ("passwd", "no such name", "ssl", "."))
    found = host.probe().etc_entries
    assert found == ("passwd", *(("ssl/",) if os.path.isdir("/etc/ssl") else ()), "./")


def test_every_hierarchy_is_one_that_can_be_used() -> None:
    found = host.probe().hierarchies
    assert found
    for hierarchy in found:
        assert Path(hierarchy.mountpoint, "cgroup.procs").exists()
        assert os.access(hierarchy.mountpoint, os.W_OK)
    assert sum(hierarchy.version == 2 for hierarchy in found) <= 1
    controllers = [c for hierarchy in found for c in hierarchy.controllers]
    assert len(controllers) == len(set(controllers))


def test_a_user_namespace_is_noticed() -> None:
    def probe() -> bool:
        enter_new("user")
        return host.probe().user_namespace

    assert in_child(probe)
    mapped = Path("/proc/self/uid_map").read_text()
    assert host.probe().user_namespace == host.in_user_namespace(mapped)


def test_the_oldest_kernel_that_suffices_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = os.uname_result(("Linux", "box", "5.12.0", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: oldest)
    assert host.probe().kernel == (5, 12)


def test_a_kernel_that_is_too_old_is_refused_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = os.uname_result(("Linux", "box", "5.11.22", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: old)
    with pytest.raises(UnsupportedHostError, match=r"Linux 5\.11 is too old: .* 5\.12 or newer"):
        host.probe()


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_mount_point_with_a_strange_name_is_found_as_it_is(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(path)

    def mount() -> list[str]:
        private_mounts()
        mount_tmpfs(path)
        return [mount.point for mount in host.mount_table()]

    assert os.fsdecode(path) in in_child(mount)


def test_a_mount_point_that_is_not_utf_8_does_not_end_in_a_traceback(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    os.mkdir(path)

    def probe() -> HostFacts:
        private_mounts()
        mount_tmpfs(path)
        assert os.fsdecode(path) in [mount.point for mount in host.mount_table()]
        return host.probe()

    assert in_child(probe).hierarchies == host.probe().hierarchies


def test_a_hierarchy_hidden_below_another_mount_is_left_out() -> None:
    unified = [h.mountpoint for h in host.probe().hierarchies if h.version == 2]
    if not unified:
        pytest.skip("no version 2 hierarchy is mounted here")

    def probe() -> list[str]:
        private_mounts()
        mount_tmpfs(os.fsencode(unified[0]))
        return [hierarchy.mountpoint for hierarchy in host.probe().hierarchies]

    assert unified[0] not in in_child(probe)


def test_a_place_in_memory_is_told_from_one_on_disk_even_before_it_exists(tmp_path: Path) -> None:
    def look() -> list[bool]:
        private_mounts()
        mount_tmpfs(os.fsencode(tmp_path))
        return [host.is_in_memory(str(tmp_path)), host.is_in_memory(f"{tmp_path}/not/yet")]

    assert in_child(look) == [True, True]
    assert not host.is_in_memory("/proc")
    assert not host.is_in_memory("/proc/no/such/place")
