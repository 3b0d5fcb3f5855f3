"""Which directories may become a root, and what a hostile one can make us read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craterun.core import flags as f
from craterun.core.errors import RootfsError, UsageError
from craterun.core.spec import Identity
from craterun.linux import calls
from craterun.linux.rootfs import check_rootfs, look_up_user, read_inside
from tests.kernel import prepared
from tests.kernel.forked import in_child, mount_tmpfs, private_mounts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The least that looks like a root directory."""
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    return path


def refusal(path: str) -> str:
    """The message with which ``path`` is refused."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RootfsError) as caught:
        check_rootfs(path)
    assert set(os.listdir("/proc/self/fd")) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["bin", "usr", "etc"])
def test_one_of_the_usual_directories_makes_a_root(tmp_path: Path, marker: str) -> None:
    (tmp_path / marker).mkdir()
    assert check_rootfs(str(tmp_path)).path == str(tmp_path)


def test_the_answer_proves_which_directory_it_was(root: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    checked = check_rootfs(str(root))
    assert (checked.device, checked.inode) == (root.stat().st_dev, root.stat().st_ino)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_symlink_to_a_root_means_the_root_itself(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "second").symlink_to("link")
    expected = check_rootfs(str(root))
    for path in ("link", "second", "root/", "root/.", "root/etc/.."):
        assert check_rootfs(f"{tmp_path}/{path}") == expected


def test_another_filesystems_root_is_not_the_hosts() -> None:
    def check() -> str:
        private_mounts()
        mount_tmpfs(b"/mnt")
        os.mkdir("/mnt/etc")
        return check_rootfs("/mnt").path

    assert in_child(check) == "/mnt"


# --- unfit ----------------------------------------------------------------------------------------


def test_an_empty_string_is_refused_with_advice() -> None:
    assert "rootfs is empty" in refusal("")


@pytest.mark.parametrize("path", ["rootfs", "./x", "../x", "~", " /", "host/"])
def test_a_relative_path_is_refused(path: str) -> None:
    assert "is not an absolute path" in refusal(path)


@pytest.mark.parametrize("path", ["/a\0b", "\0", "/\0"])
def test_a_path_with_a_nul_is_refused(path: str) -> None:
    assert "NUL" in refusal(path)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(f"{tmp_path}/nowhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "No such file" in refusal(f"{tmp_path}/dangling")


def test_a_loop_of_symlinks_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refusal(f"{tmp_path}/loop")
    assert "too long" in refusal(f"/{'x' * 300}")


def test_a_path_with_a_lone_surrogate_is_refused() -> None:
    refusal("/\ud800")


@pytest.mark.parametrize("kind", ["file", "fifo", "link to a file", "below a file"])
def test_what_is_not_a_directory_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a file":
        path.symlink_to("/etc/passwd")
    else:
        path.write_text("")
    asked = path / "y" if kind == "below a file" else path
    assert "Not a directory" in refusal(str(asked))


@pytest.mark.parametrize(
    "path", ["/", "//", "/.", "/../", "/usr/..", "/proc/self/root", "/proc/self/cwd"]
)
def test_the_hosts_root_is_refused_however_it_is_spelled(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert "the host's own root directory" in refusal(path)


def test_a_symlink_to_the_hosts_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("/")
    (tmp_path / "two").symlink_to("one/../")
    (tmp_path / "three").symlink_to("../" * 30)
    for name in ("one", "two", "three"):
        assert "the host's own root directory" in refusal(f"{tmp_path}/{name}")


def test_a_bind_mount_of_the_hosts_root_is_refused(tmp_path: Path) -> None:
    def check() -> list[str]:
        private_mounts()
        tree = calls.open_tree(f.AT_FDCWD, b"/", f.OPEN_TREE_CLONE)
        prepared.move_mount(tree, f.AT_FDCWD, os.fsencode(tmp_path))
        assert (tmp_path / "etc").is_dir(), "the bind mount is not there"
        return [refusal(str(tmp_path)), refusal(f"{tmp_path}/usr/..")]

    for message in in_child(check):
        assert "the host's own root directory" in message


@pytest.mark.parametrize("content", ["nothing", "a file", "files of the right names"])
def test_a_directory_that_does_not_look_like_a_root_is_refused(
    tmp_path: Path, content: str
) -> None:
    if content == "a file":
        (tmp_path / "image.tar").write_text("")
    elif content == "files of the right names":
        for name in ("bin", "usr", "etc"):
            (tmp_path / name).write_text("")
    assert "has none of bin/, usr/ and etc/" in refusal(str(tmp_path))


def test_a_hostile_path_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J\n").mkdir()
    assert "has none of" in refusal(f"{tmp_path}/\x1b[2J\n")


# --- a container's own files ----------------------------------------------------------------------

Read = Callable[[bytes], str]


@pytest.fixture
def read(root: Path) -> Iterator[Read]:
    """Reads below ``root``, and leaks no descriptor."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def checked(path: bytes = b"etc/passwd") -> str:
        before = set(os.listdir("/proc/self/fd"))
        content = read_inside(fd, path)
        assert set(os.listdir("/proc/self/fd")) == before
        return content

    yield checked
    os.close(fd)


def test_a_regular_file_is_read(root: Path, read: Read) -> None:
    (root / "etc" / "passwd").write_bytes(b"root:x:0:0::/:/bin/sh\n\xff")
    assert read(b"etc/passwd") == "root:x:0:0::/:/bin/sh\n\ufffd"


def test_a_missing_file_is_empty(root: Path, read: Read) -> None:
    assert read(b"etc/passwd") == ""
    shutil.rmtree(root / "etc")
    assert read(b"etc/passwd") == ""


@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../../../../etc/shadow"])
def test_a_symlink_to_the_hosts_shadow_is_not_followed_out(
    root: Path, read: Read, target: str
) -> None:
    secret = Path("/etc/shadow").read_text()
    assert secret
    (root / "etc" / "passwd").symlink_to(target)
    assert read(b"etc/passwd") == ""
    (root / "etc" / "shadow").write_text("the container's")
    assert read(b"etc/passwd") == "the container's"


def test_a_directory_that_is_a_symlink_out_is_not_followed_out(root: Path, read: Read) -> None:
    shutil.rmtree(root / "etc")
    (root / "etc").symlink_to("/etc")
    assert read(b"etc/passwd") == ""
    (root / "etc").unlink()
    (root / "etc").symlink_to("/proc/self/root/etc")
    assert read(b"etc/passwd") == ""


def test_a_fifo_blocks_nobody(root: Path, read: Read) -> None:
    os.mkfifo(root / "etc" / "passwd")
    assert read(b"etc/passwd") == ""
    holder = os.open(root / "etc" / "passwd", os.O_RDWR)
    os.write(holder, b"root:x:0:0::/:/bin/sh\n")
    assert read(b"etc/passwd") == ""
    os.close(holder)


def test_a_huge_file_is_no_account_file(root: Path, read: Read) -> None:
    with (root / "etc" / "passwd").open("wb") as file:
        file.truncate(1 << 40)
    assert read(b"etc/passwd") == ""


def test_the_largest_account_file_is_read_whole(root: Path, read: Read) -> None:
    (root / "etc" / "passwd").write_bytes(b"#" * (4 * 1024 * 1024))
    assert len(read(b"etc/passwd")) == 4 * 1024 * 1024
    with (root / "etc" / "passwd").open("ab") as file:
        file.write(b"#")
    assert read(b"etc/passwd") == ""


def test_a_directory_is_no_account_file(root: Path, read: Read) -> None:
    (root / "etc" / "passwd").mkdir()
    assert read(b"etc/passwd") == ""


def test_a_device_is_no_account_file(root: Path, read: Read) -> None:
    os.mknod(root / "etc" / "passwd", 0o020666, os.makedev(1, 5))  # endless zeros
    assert read(b"etc/passwd") == ""


# --- users ----------------------------------------------------------------------------------------


def test_no_user_is_root_without_any_look_up(root: Path) -> None:
    assert look_up_user(None, f"{root}/nowhere") == Identity()


def test_a_user_is_looked_up_in_the_containers_files_not_in_the_hosts(root: Path) -> None:
    (root / "etc" / "passwd").write_text("daemon:x:4000:4001::/d:/bin/sh\n")
    (root / "etc" / "group").write_text("extra:x:50:daemon\n")
    assert look_up_user("daemon", str(root)) == Identity(4000, 4001, (50,), "/d")
    assert look_up_user("daemon:extra", str(root)) == Identity(4000, 50, (), "/d")
    with pytest.raises(UsageError, match="unknown user 'nobody'"):
        look_up_user("nobody", str(root))


def test_without_a_directory_the_given_accounts_count() -> None:
    accounts = ("u:x:7:8::/h:/bin/sh\n", "")
    assert look_up_user("u", None, accounts) == Identity(7, 8, (), "/h")
    with pytest.raises(UsageError, match="unknown user 'daemon'"):
        look_up_user("daemon", None, accounts)
