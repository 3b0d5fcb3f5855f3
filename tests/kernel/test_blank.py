"""The blank mount namespace that containers begin in a copy of (`keeper.blank`)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from craterun.core import flags as f
from craterun.keeper import blank
from craterun.keeper.blank import make_blank
from craterun.linux import calls
from tests.kernel import prepared
from tests.kernel.forked import in_child

_MS_REMOUNT, _MS_BIND = 0x20, 0x1000


def test_there_is_nothing_in_it_but_an_empty_directory_that_cannot_be_written_to() -> None:
    def look() -> tuple[list[str], list[int | None]]:
        prepared.setns(make_blank(), f.CLONE_NEWNS)
        refusals = []
        for remount in (0, _MS_REMOUNT | _MS_BIND):
            if remount:  # as root of a container could that has CAP_SYS_ADMIN
                prepared.mount_propagation(b"/", remount)
            with pytest.raises(OSError, match="/new") as caught:
                os.mkdir("/new")
            refusals.append(caught.value.errno)
        return os.listdir("/"), refusals

    assert in_child(look) == ([], [errno.EROFS, errno.ENOSPC])


@pytest.mark.cgroup_v2  # of another kernel
def test_no_other_mount_is_in_it() -> None:
    def look() -> list[str]:
        proc = os.open("/proc/self", os.O_PATH)
        prepared.setns(make_blank(), f.CLONE_NEWNS)
        fd = os.open("mountinfo", os.O_RDONLY, dir_fd=proc)
        return os.read(fd, 1 << 20).decode().splitlines()

    (line,) = in_child(look)
    assert line.split()[4] == "/"
    assert line.split()[5].split(",")[0] == "ro"
    assert "shared:" not in line
    assert "master:" not in line


def test_whoever_makes_it_is_afterwards_where_it_was() -> None:
    def look() -> tuple[object, object]:
        def place() -> tuple[object, ...]:
            mounts = Path("/proc/self/mountinfo").read_text()
            return os.readlink("/proc/self/ns/mnt"), mounts, os.stat("/").st_ino, os.getcwd()

        os.chdir("/")
        before = place()
        make_blank()
        return before, place()

    before, after = in_child(look)
    assert before == after


def test_whoever_has_changed_its_root_stays_there(tmp_path: Path) -> None:
    def look() -> list[str]:
        os.mkdir(tmp_path / "proc")
        os.mkdir(tmp_path / "here")
        calls.unshare(f.CLONE_NEWNS)
        prepared.mount_propagation(b"/", f.MS_REC | f.MS_PRIVATE)
        tree = calls.open_tree(f.AT_FDCWD, b"/proc", f.OPEN_TREE_CLONE | f.AT_RECURSIVE)
        prepared.move_mount(tree, f.AT_FDCWD, os.fsencode(tmp_path / "proc"))
        os.chroot(tmp_path)
        os.chdir("/")
        make_blank()
        return [*sorted(os.listdir("/")), *sorted(os.listdir("."))]

    assert in_child(look) == ["here", "proc"] * 2


def test_it_takes_one_descriptor_which_no_program_inherits() -> None:
    def look() -> tuple[int, bool]:
        before = len(os.listdir("/proc/self/fd"))
        fd = make_blank()
        return len(os.listdir("/proc/self/fd")) - before, os.get_inheritable(fd)

    assert in_child(look) == (1, False)


def _failed() -> tuple[str, int | None, bool]:
    """(call, errno, whether all is as it was before)."""

    def place() -> object:
        return os.readlink("/proc/self/ns/mnt"), os.listdir("/"), os.listdir("/proc/self/fd")

    before = place()
    try:
        make_blank()
    except OSError as error:
        return error.filename, error.errno, place() == before
    raise AssertionError("it did not fail")


def test_whoever_may_not_is_told_so() -> None:
    def look() -> tuple[str, int | None, bool]:
        os.setresuid(65534, 65534, 65534)
        return _failed()

    assert in_child(look) == ("clone3", errno.EPERM, True)


@pytest.mark.parametrize("call", ["mount", "fsopen", "fsmount", "move_mount", "pivot_root"])
def test_a_failure_names_the_call_and_leaves_everything_as_it_was(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_such_call = 4000
    monkeypatch.setitem(blank._NUMBERS, call, no_such_call)
    assert in_child(_failed) == (call, errno.ENOSYS, True)
