"""``--rootfs DIR``: what a container sees of it, and that only the command changes it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, MakeRootfs, mount_namespace

cli = helpers.cli

ETC_FILES = ("hosts", "hostname", "resolv.conf")
MOUNT_POINTS = {"dev", "proc", "sys"}


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """Each file below ``root`` with all that a change would leave a trace in."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(folder, name)
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path.relative_to(root))] = (
                content, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_mode,
                os.readlink(path) if path.is_symlink() else "",
            )  # fmt: skip
    return found


def test_files_of_the_rootfs_can_be_read_and_written(cli: Cli, rootfs: Path) -> None:
    (rootfs / "given").write_text("from the host\n")
    script = "cat /given; echo from-inside > /made; rm /given"
    result = cli("run", "--rootfs", str(rootfs), "--attach", "--", "sh", "-c", script)
    assert (result.returncode, result.stdout) == (0, b"from the host\n")
    assert (rootfs / "made").read_text() == "from-inside\n"
    assert not (rootfs / "given").exists()


def test_etc_files_are_the_containers_own_inside(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--hostname", "box", "--", *SLEEP)
    assert live.root("etc/hostname").read_text() == "box\n"
    hosts = live.root("etc/hosts").read_text().splitlines()
    table = {name: line.split()[0] for line in hosts for name in line.split()[1:]}
    assert table["localhost"] in ("127.0.0.1", "::1")
    assert table["box"].startswith("127.")
    resolver = live.root("etc/resolv.conf").read_text()
    assert "nameserver" not in resolver.replace("# no nameserver", "")
    for name in ETC_FILES:
        assert live.root(f"etc/{name}").stat().st_mode & 0o777 == 0o644


def test_files_that_were_there_stay_byte_identical(cli: Cli, rootfs: Path) -> None:
    for name in ETC_FILES:
        (rootfs / "etc" / name).write_text(f"the rootfs's own {name}\n")
    for name in MOUNT_POINTS:
        (rootfs / name).mkdir()
        (rootfs / name / "below").write_text("hidden by a mount\n")
    before = everything(rootfs)
    script = "cat /etc/hosts; for f in hosts hostname resolv.conf; do echo new > /etc/$f; done"
    result = cli("run", "--rootfs", str(rootfs), "--attach", "--", "sh", "-c", script)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"localhost" in result.stdout
    assert everything(rootfs) == before


def test_only_empty_mount_points_are_added(cli: Cli, rootfs: Path) -> None:
    before = set(everything(rootfs))
    cli.ok("run", "--rootfs", str(rootfs), "--", "true")
    added = {name: state for name, state in everything(rootfs).items() if name not in before}
    assert set(added) <= {*MOUNT_POINTS, *(f"etc/{name}" for name in ETC_FILES)}
    assert all(state[0] == b"" for state in added.values())


def test_a_rootfs_without_etc_is_left_without(cli: Cli, rootfs: Path) -> None:
    shutil.rmtree(rootfs / "etc")
    result = cli("run", "--rootfs", str(rootfs), "--attach", "--", "ls", "/")
    assert (result.returncode, result.stdout.split()) == (
        0, [b"bin", b"dev", b"proc", b"sys", b"tmp"],
    )  # fmt: skip
    assert not (rootfs / "etc").exists()


@pytest.mark.parametrize("marker", ["bin", "usr", "etc"])
def test_one_of_bin_usr_etc_suffices(marker: str, cli: Cli, tmp_path: Path, busybox: str) -> None:
    root = tmp_path / "bare"
    (root / marker).mkdir(parents=True)
    shutil.copy(busybox, root / "busybox")
    result = cli("run", "--rootfs", str(root), "-a", "--", "/busybox", "echo", "bare")
    assert (result.returncode, result.stdout) == (0, b"bare\n")


@pytest.mark.parametrize("link", ["/run/resolver/stub.conf", "../run/resolver/stub.conf"])
def test_symlinked_etc_file_is_covered_and_its_target_kept(
    link: str, cli: Cli, rootfs: Path
) -> None:
    target = rootfs / "run/resolver/stub.conf"
    target.parent.mkdir(parents=True)
    target.write_text("nameserver 192.0.2.1\n")
    (rootfs / "etc/resolv.conf").symlink_to(link)
    before = everything(rootfs / "run")
    result = cli("run", "--rootfs", str(rootfs), "-a", "--", "cat", "/etc/resolv.conf")
    assert result.returncode == 0
    assert b"192.0.2.1" not in result.stdout
    assert everything(rootfs / "run") == before
    assert os.readlink(rootfs / "etc/resolv.conf") == link


@pytest.mark.parametrize("name", ["with blank", "new\nline", "ünïcödé", "back\\slash", "a" * 200])
def test_any_file_name_will_do_for_a_rootfs(name: str, cli: Cli, make_rootfs: MakeRootfs) -> None:
    root = make_rootfs(name)
    live = cli.detach("--rootfs", str(root), "--", *SLEEP)
    assert os.stat(live.root("/")).st_ino == root.stat().st_ino


def test_a_file_name_that_is_not_utf8_will_do(cli: Cli, make_rootfs: MakeRootfs) -> None:
    root = make_rootfs(os.fsdecode(b"caf\xe9"))
    result = cli("run", "--rootfs", os.fsencode(root), "-a", "--", "echo", "hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")


def test_a_symlink_to_a_rootfs_is_followed(cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(rootfs)
    live = cli.detach("--rootfs", str(tmp_path / "link"), "--", *SLEEP)
    assert os.stat(live.root("/")).st_ino == rootfs.stat().st_ino


def test_two_containers_share_a_rootfs_at_the_same_time(cli: Cli, rootfs: Path) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    second = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    for live in (first, second):
        assert live.root("etc/hostname").read_text() == f"{live.id[:12]}\n"


def test_mounts_below_the_rootfs_come_along(cli: Cli, rootfs: Path) -> None:
    (rootfs / "data").mkdir()
    with mount_namespace('mount -t tmpfs none "$1/data"; echo kept > "$1/data/f"', rootfs) as aside:
        inside = cli.behind(*aside.enter)
        result = inside("run", "--rootfs", str(rootfs), "-a", "--", "cat", "/data/f")
        assert (result.returncode, result.stdout) == (0, b"kept\n")


def test_a_read_only_rootfs_stays_read_only_and_runs(cli: Cli, rootfs: Path) -> None:
    for name in MOUNT_POINTS:
        (rootfs / name).mkdir()
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"'
    before = everything(rootfs)
    with mount_namespace(script, rootfs) as aside:
        inside = cli.behind(*aside.enter)
        command = ("sh", "-c", "echo > /file; cat /proc/self/comm; echo x > /dev/null")
        result = inside("run", "--rootfs", str(rootfs), "-a", "--", *command)
    assert (result.returncode, result.stdout) == (0, b"cat\n")
    assert b"Read-only file system" in result.stderr
    assert everything(rootfs) == before


def test_a_read_only_rootfs_without_mount_points_is_refused(cli: Cli, rootfs: Path) -> None:
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"'
    with mount_namespace(script, rootfs) as aside:
        message = cli.behind(*aside.enter).refused("run", "--rootfs", str(rootfs), "--", "true")
    assert "read-only" in message
    assert "/proc" in message
    assert cli.ids() == set()


# Only a namespace with a higher number may be pinned, and each processor counts for itself.
_PIN = """
touch "$1/pin"
for cpu in $(seq 0 $(($(nproc) - 1))); do
    if taskset -c $cpu unshare --mount="$1/pin" true 2>/dev/null; then break; fi
done
mountpoint -q "$1/pin"
"""


@pytest.mark.parametrize(
    "script",
    [
        'mount --bind "$1" "$1"; mount --make-unbindable "$1"',
        _PIN,
        'mount -t tmpfs none "$1/other"; mount --make-unbindable "$1/other"',
    ],
    ids=["unbindable", "with a pinned mount namespace", "with an unbindable mount"],
)
def test_a_rootfs_that_no_bind_mount_shows_as_it_is_runs_all_the_same(
    script: str, cli: Cli, rootfs: Path
) -> None:
    # Copied with all mounts of the host, as the others are not.
    for name in ("data", "other"):
        (rootfs / name).mkdir()
    (rootfs / "other/beneath").touch()
    script += '\nmount -t tmpfs none "$1/data"; echo kept > "$1/data/f"'
    with mount_namespace(script, rootfs) as aside:
        inside = cli.behind(*aside.enter)
        listing = inside.ok("run", "--rootfs", str(rootfs), "-a", "--", "ls", "/other")
        assert listing == ("" if "other" in script else "beneath\n")
        assert inside.ok("run", "--rootfs", str(rootfs), "-a", "--", "cat", "/data/f") == "kept\n"


def test_a_noexec_rootfs_is_refused_with_the_reason(cli: Cli, rootfs: Path) -> None:
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,noexec "$1"'
    with mount_namespace(script, rootfs) as aside:
        refused = cli.behind(*aside.enter).refused
        message = refused("run", "--rootfs", str(rootfs), "--", "true", code=126)
    assert "noexec" in message


def test_the_host_sees_no_mount_of_a_running_container(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    assert {mount.point for mount in live.mounts()} >= {"/dev", "/proc", "/sys"}
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()
    assert [os.listdir(rootfs / name) for name in MOUNT_POINTS] == [[], [], []]


# --- users, as the rootfs's own files name them ---------------------------------------------------


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("alice", 1000, 1000, "50", "/home/alice"),
        ("1000", 1000, 1000, "50", "/home/alice"),
        ("alice:staff", 1000, 50, "", "/home/alice"),
        ("alice:1234", 1000, 1234, "", "/home/alice"),
        ("1000:1000", 1000, 1000, "", "/home/alice"),
        ("4242", 4242, 0, "", "/"),
        ("4242:staff", 4242, 50, "", "/"),
        ("root", 0, 0, "", "/root"),
        ("0:0", 0, 0, "", "/root"),
        ("4294967294", 4294967294, 0, "", "/"),
    ],
)
def test_user_is_what_the_rootfs_says(
    user: str, uid: int, gid: int, groups: str, home: str, cli: Cli, rootfs: Path
) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--user", user, "--", *SLEEP)
    status = live.status()
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["Groups"] == groups
    assert live.environment()["HOME"] == home


def test_without_user_it_is_root_without_the_callers_groups(cli: Cli, rootfs: Path) -> None:
    grouped = cli.behind("setpriv", "--groups", "4242,4243", "--")
    status = grouped.detach("--rootfs", str(rootfs), "--", *SLEEP).status()
    assert (status["Uid"].split()[0], status["Gid"].split()[0]) == ("0", "0")
    assert status["Groups"] == ""


def test_account_files_are_looked_up_inside_the_rootfs(cli: Cli, rootfs: Path) -> None:
    # An absolute symlink means a file of the rootfs, not the host's.
    (rootfs / "etc/real-passwd").write_text("carol:x:77:78::/home/carol:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/real-passwd")
    live = cli.detach("--rootfs", str(rootfs), "-u", "carol", "--", *SLEEP)
    assert live.status()["Uid"].split()[0] == "77"
    host_only = subprocess.run(
        ["getent", "passwd", "daemon"], capture_output=True, check=False
    ).stdout
    assert host_only
    assert "daemon" in cli.refused("run", "--rootfs", str(rootfs), "-u", "daemon", "--", "true")
