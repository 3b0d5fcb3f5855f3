"""System calls about mounts and paths, each in a mount namespace of a child's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.core import flags as f
from craterun.linux import calls
from craterun.linux.proc import parse_mountinfo
from tests.kernel import prepared
from tests.kernel.forked import in_child, mount_tmpfs, new_tmpfs, private_mounts

_MS_SHARED = 1 << 20


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def mounted_at(path: Path) -> list[str]:
    return [mount.kind for mount in parse_mountinfo(mountinfo()) if mount.point == str(path)]


def refused(function: Callable[[], object]) -> int | None:
    """The errno with which ``function`` is refused."""
    with pytest.raises(OSError, match="Errno") as caught:
        function()
    return caught.value.errno


# --- the mount API --------------------------------------------------------------------------------


def test_a_filesystem_is_nowhere_until_it_is_moved_somewhere(tmp_path: Path) -> None:
    def mount() -> list[list[str]]:
        private_mounts()
        made = new_tmpfs()
        before = mounted_at(tmp_path)
        prepared.move_mount(made, f.AT_FDCWD, os.fsencode(tmp_path))
        return [before, mounted_at(tmp_path)]

    assert in_child(mount) == [[], ["tmpfs"]]
    assert mounted_at(tmp_path) == [], "the host must not see it"


def test_options_and_attributes_are_in_force(tmp_path: Path) -> None:
    attributes = f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV | f.MOUNT_ATTR_NOEXEC

    def mount() -> tuple[int, int, int]:
        private_mounts()
        made = new_tmpfs((b"size", b"64k"), (b"mode", b"0751"), attributes=attributes)
        prepared.move_mount(made, f.AT_FDCWD, os.fsencode(tmp_path))
        found = os.statvfs(tmp_path)
        return found.f_blocks * found.f_bsize, found.f_flag, tmp_path.stat().st_mode & 0o7777

    size, flags, mode = in_child(mount)
    assert (size, mode) == (64 * 1024, 0o751)
    for flag in (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
        assert flags & flag
    assert not flags & os.ST_RDONLY


def test_an_option_without_a_value_is_a_flag() -> None:
    def make() -> int:
        private_mounts()
        context = prepared.fsopen(b"devpts")
        prepared.fsconfig(context, f.FSCONFIG_SET_FLAG, b"newinstance", None)
        prepared.fsconfig(context, f.FSCONFIG_CMD_CREATE, None, None)
        mount = prepared.fsmount(context, 0)
        return os.stat(b"ptmx", dir_fd=mount).st_mode

    assert in_child(make)


def test_an_unknown_filesystem_and_an_unknown_option_are_refused() -> None:
    assert refused(lambda: prepared.fsopen(b"nosuchfs")) == errno.ENODEV
    context = prepared.fsopen(b"tmpfs")
    bad = lambda: prepared.fsconfig(context, f.FSCONFIG_SET_STRING, b"nosuch", b"1")  # noqa: E731
    assert refused(bad) == errno.EINVAL
    os.close(context)


def test_a_cloned_tree_can_be_read_only_while_the_original_is_not(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()

    def bind() -> int | None:
        private_mounts()
        tree = calls.open_tree(f.AT_FDCWD, os.fsencode(tmp_path / "here"), f.OPEN_TREE_CLONE)
        calls.mount_setattr(tree, 0, f.MOUNT_ATTR_RDONLY)
        prepared.move_mount(tree, f.AT_FDCWD, os.fsencode(tmp_path / "there"))
        (tmp_path / "here" / "file").write_text("x")
        assert (tmp_path / "there" / "file").read_text() == "x"
        return refused((tmp_path / "there" / "other").touch)

    assert in_child(bind) == errno.EROFS


@pytest.mark.parametrize("recursive", [False, True])
def test_attributes_reach_the_mounts_below_only_if_asked_to(
    tmp_path: Path, recursive: bool
) -> None:
    (tmp_path / "below").mkdir()

    def bind() -> bool:
        private_mounts()
        mount_tmpfs(os.fsencode(tmp_path / "below"))
        flags = f.OPEN_TREE_CLONE | f.AT_RECURSIVE
        tree = calls.open_tree(f.AT_FDCWD, os.fsencode(tmp_path), flags)
        calls.mount_setattr(tree, f.AT_RECURSIVE if recursive else 0, f.MOUNT_ATTR_RDONLY)
        below = os.open(b"below", os.O_RDONLY, dir_fd=tree)
        assert os.fstatvfs(tree).f_flag & os.ST_RDONLY
        return bool(os.fstatvfs(below).f_flag & os.ST_RDONLY)

    assert in_child(bind) == recursive


def test_an_attribute_can_be_taken_back() -> None:
    def toggle() -> list[int]:
        private_mounts()
        mount = new_tmpfs()
        calls.mount_setattr(mount, 0, f.MOUNT_ATTR_RDONLY | f.MOUNT_ATTR_NOSUID)
        both = os.fstatvfs(mount).f_flag
        calls.mount_setattr(mount, 0, 0, clear=f.MOUNT_ATTR_RDONLY)
        return [both, os.fstatvfs(mount).f_flag]

    both, after = in_child(toggle)
    assert both & os.ST_RDONLY
    assert both & os.ST_NOSUID
    assert not after & os.ST_RDONLY
    assert after & os.ST_NOSUID


def test_a_mount_is_moved_onto_a_descriptor_if_there_is_no_path(tmp_path: Path) -> None:
    def mount() -> list[str]:
        private_mounts()
        target = os.open(tmp_path, os.O_PATH)
        prepared.move_mount(new_tmpfs(), target, b"")
        return mounted_at(tmp_path)

    assert in_child(mount) == ["tmpfs"]


def test_a_symlink_is_no_mount_target(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to("victim")

    def mount() -> tuple[int | None, list[str]]:
        private_mounts()
        made = new_tmpfs()
        link = os.fsencode(tmp_path / "link")
        number = refused(lambda: prepared.move_mount(made, f.AT_FDCWD, link))
        return number, mounted_at(tmp_path / "victim")

    number, covered = in_child(mount)
    assert number in (errno.EINVAL, errno.ENOTDIR)  # it differs between kernels
    assert covered == []


def test_what_these_calls_open_does_not_survive_an_execve() -> None:
    def inheritable() -> list[bool]:
        private_mounts()
        context = prepared.fsopen(b"tmpfs")
        prepared.fsconfig(context, f.FSCONFIG_CMD_CREATE, None, None)
        opened = [
            context,
            prepared.fsmount(context, 0),
            calls.open_tree(f.AT_FDCWD, b"/", f.OPEN_TREE_CLONE),
            calls.open_tree(f.AT_FDCWD, b"/", 0),
            calls.openat2(f.AT_FDCWD, b"/", os.O_RDONLY, 0),
        ]
        return [os.get_inheritable(fd) for fd in opened]

    assert in_child(inheritable) == [False] * 5


# --- the old ones ---------------------------------------------------------------------------------


def test_propagation_is_what_was_asked_for(tmp_path: Path) -> None:
    def change() -> list[bool]:
        private_mounts()
        path = os.fsencode(tmp_path)
        mount_tmpfs(path)

        def shared() -> bool:
            (line,) = (line for line in mountinfo().splitlines() if f" {tmp_path} " in line)
            return " shared:" in line

        found = [shared()]
        prepared.mount_propagation(path, _MS_SHARED)
        found.append(shared())
        prepared.mount_propagation(path, f.MS_PRIVATE)
        return [*found, shared()]

    assert in_child(change) == [False, True, False]


def test_a_pivoted_root_shows_nothing_of_the_old_one(tmp_path: Path) -> None:
    def pivot() -> list[str]:
        private_mounts()
        mount_tmpfs(os.fsencode(tmp_path))
        (tmp_path / "only").mkdir()
        os.chdir(tmp_path)
        prepared.pivot_root(b".", b".")
        prepared.umount2(b".", f.MNT_DETACH)
        os.chdir("/")
        return os.listdir("/")

    assert in_child(pivot) == ["only"]
    assert os.path.isdir("/usr")


def test_a_directory_that_is_no_mount_cannot_become_the_root(tmp_path: Path) -> None:
    def pivot() -> int | None:
        private_mounts()
        mount_tmpfs(os.fsencode(tmp_path))
        (tmp_path / "sub").mkdir()
        path = os.fsencode(tmp_path / "sub")
        return refused(lambda: prepared.pivot_root(path, path))

    assert in_child(pivot) == errno.EINVAL


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    assert refused(lambda: prepared.umount2(os.fsencode(tmp_path), 0)) == errno.EINVAL


# --- openat2 --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A hostile rootfs, beside a file that it must not reach."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "file").write_text("inside")
    (root / "file").write_text("top")
    (tmp_path / "secret").write_text("outside")
    (root / "relative").symlink_to("etc/file")
    (root / "absolute").symlink_to("/etc/file")
    (root / "up").symlink_to("../secret")
    (root / "dir").symlink_to("etc")
    (root / "loop").symlink_to("loop")
    (root / "magic").symlink_to("/proc/self/cwd")
    return root


def look(root: Path, path: bytes, resolve: int) -> str | int | None:
    """The content of the file that ``path`` leads to, or the errno."""
    base = os.open(root, os.O_PATH)
    try:
        fd = calls.openat2(base, path, os.O_RDONLY, resolve)
    except OSError as error:
        assert error.filename == "openat2"  # noqa: PT017
        return error.errno
    finally:
        os.close(base)
    with open(fd) as file:
        return file.read()


@pytest.mark.parametrize(
    ("path", "beneath", "no_links", "in_root"),
    [
        (b"etc/file", "inside", "inside", "inside"),
        (b"relative", "inside", errno.ELOOP, "inside"),
        (b"dir/file", "inside", errno.ELOOP, "inside"),
        (b"absolute", errno.EXDEV, errno.ELOOP, "inside"),
        (b"/etc/file", errno.EXDEV, "", "inside"),
        (b"up", errno.EXDEV, errno.ELOOP, errno.ENOENT),
        (b"../secret", errno.EXDEV, "outside", errno.ENOENT),
        (b"etc/../../secret", errno.EXDEV, "outside", errno.ENOENT),
        (b"../../../file", errno.EXDEV, "", "top"),
        (b"loop", errno.ELOOP, errno.ELOOP, errno.ELOOP),
        (b"nowhere", errno.ENOENT, errno.ENOENT, errno.ENOENT),
    ],
)
def test_a_path_resolves_as_far_as_it_is_allowed_to(
    tree: Path, path: bytes, beneath: str | int, no_links: str | int, in_root: str | int
) -> None:
    assert look(tree, path, f.RESOLVE_BENEATH) == beneath
    assert look(tree, path, f.RESOLVE_IN_ROOT) == in_root
    if no_links:  # "": depends on the host
        assert look(tree, path, f.RESOLVE_NO_SYMLINKS) == no_links


def test_a_magic_link_of_proc_is_followed_only_if_allowed() -> None:
    path = b"/proc/self/cwd"
    for resolve, allowed in ((0, True), (f.RESOLVE_NO_MAGICLINKS, False)):
        if allowed:
            os.close(calls.openat2(f.AT_FDCWD, path, os.O_RDONLY, resolve))
        else:
            opened = lambda: calls.openat2(f.AT_FDCWD, path, os.O_RDONLY, resolve)  # noqa: B023, E731
            assert refused(opened) == errno.ELOOP


def test_a_file_is_made_with_the_mode_given(tmp_path: Path) -> None:
    base = os.open(tmp_path, os.O_PATH)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(calls.openat2(base, b"new", flags, f.RESOLVE_IN_ROOT, 0o640))
    os.close(base)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
