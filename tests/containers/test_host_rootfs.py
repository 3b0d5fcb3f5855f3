"""The built-in rootfs: the host's programs, none of its data, and nothing of it writable."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from craterun.linux.proc import Mount
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Live

cli = helpers.cli

OWN_KINDS = ("proc", "sysfs", "devpts", "mqueue")
SCRATCH = ("/tmp", "/run", "/var/tmp", "/root")


@pytest.fixture
def live(cli: Cli) -> Live:
    """A container with the built-in rootfs that does nothing."""
    return cli.detach("--", *SLEEP)


def test_it_is_the_default_and_has_the_name_host(cli: Cli) -> None:
    for option in ((), ("--rootfs", "host")):
        result = cli("run", *option, "--attach", "--", "perl", "-e", "print 'hello'")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"hello", b"")


def test_program_folders_are_as_on_the_host(live: Live) -> None:
    found = 0
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        on_host, inside = Path("/", name), live.root(name)
        assert os.path.lexists(inside) == os.path.lexists(on_host)
        if on_host.is_symlink():
            assert os.readlink(inside) == os.readlink(on_host)
        elif on_host.is_dir():
            assert sorted(os.listdir(inside)) == sorted(os.listdir(on_host))
        found += os.path.lexists(inside)
    assert found >= 2
    assert os.stat(live.root("usr/bin")).st_ino == os.stat("/usr/bin").st_ino


def _of_the_host(live: Live) -> list[Mount]:
    """Mounts that show the host's files, told apart by device: ours are filesystems of our own."""
    on_host = {mount.device for mount in Live(os.getpid()).mounts()}
    return [m for m in live.mounts() if m.device in on_host and m.kind not in OWN_KINDS]


def test_every_mount_of_the_hosts_files_is_read_only_nosuid_nodev(live: Live) -> None:
    mounts = _of_the_host(live)
    assert "/usr" in {mount.point for mount in mounts}
    wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
    for mount in mounts:
        assert os.statvfs(live.root(mount.point)).f_flag & wanted == wanted, mount


def test_root_inside_can_write_to_nothing_of_the_hosts(cli: Cli, live: Live) -> None:
    points = [mount.point for mount in _of_the_host(live)]
    script = (
        "for (@ARGV) { my $f = -d $_ ? qq($_/planted) : $_;"
        "  print qq($_ ), (open(my $h, '+>>', $f) ? 'OPENED' : $!{EROFS} ? 'EROFS' : $!), qq(\\n);"
        "  print qq($_ ), (chmod(0777, $_) ? 'CHANGED' : $!{EROFS} ? 'EROFS' : $!), qq(\\n) }"
    )
    seen = cli.ok("exec", live.id, "--", "perl", "-MErrno", "-e", script, *points).splitlines()
    assert seen == [f"{point} EROFS" for point in points for _ in range(2)]


def test_root_inside_cannot_remount_or_mount(cli: Cli, live: Live) -> None:
    for arguments in (("-o", "remount,rw,bind", "/usr"), ("-t", "tmpfs", "none", "/mnt")):
        result = cli("exec", live.id, "--", "mount", *arguments)
        assert result.returncode != 0
        assert b"permission denied" in result.stderr.lower()
    assert os.statvfs(live.root("usr")).f_flag & os.ST_RDONLY


def test_the_hosts_devices_cannot_be_created(cli: Cli, live: Live) -> None:
    result = cli("exec", live.id, "--", "mknod", "/tmp/disk", "b", "8", "0")
    assert b"Operation not permitted" in result.stderr


@pytest.mark.parametrize("folder", SCRATCH)
def test_scratch_folders_are_writable_private_and_not_the_hosts(
    folder: str, cli: Cli, live: Live
) -> None:
    assert os.listdir(live.root(folder)) == []
    cli.ok("exec", live.id, "--", "sh", "-c", f"echo mine > {folder}/file")
    assert live.root(f"{folder}/file").read_text() == "mine\n"
    assert not Path(folder, "file").exists()
    assert os.stat(live.root(folder)).st_dev != os.stat(folder).st_dev
    other = cli.detach("--", *SLEEP)
    assert os.listdir(other.root(folder)) == []


def test_scratch_folders_have_the_usual_modes(live: Live) -> None:
    modes = {folder: stat.S_IMODE(os.stat(live.root(folder)).st_mode) for folder in SCRATCH}
    assert modes == {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/run": 0o755}


def test_no_data_of_the_host_is_there(live: Live, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    assert not live.root(str(tmp_path)).exists()
    for folder in ("home", "srv", "opt", "mnt", "var/log", "var/lib", "var/cache"):
        assert os.listdir(live.root(folder)) == []
    known = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "dev", "proc", "sys",
             "tmp", "run", "root", "home", "srv", "opt", "mnt", "var", "media", "boot"}  # fmt: skip
    assert set(os.listdir(live.root("/"))) <= known


def test_etc_is_small_and_its_own(live: Live) -> None:
    known = {"passwd", "group", "hosts", "hostname", "resolv.conf", "nsswitch.conf", "mtab",
             "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
             "protocols", "services", "ssl"}  # fmt: skip
    etc = live.root("etc")
    assert set(os.listdir(etc)) <= known
    for name in ("passwd", "group", "hosts", "hostname", "resolv.conf", "nsswitch.conf"):
        assert os.stat(etc / name).st_dev != os.stat("/etc").st_dev
    users = {line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()}
    assert {"root", "nobody"} <= users
    assert len(users) < 10
    # Private keys live next to the certificates.
    assert set(os.listdir(etc / "ssl")) <= {"certs"}
    assert (etc / "hostname").read_text() == f"{live.id[:12]}\n"
    assert f"127.0.1.1\t{live.id[:12]}\n" in (etc / "hosts").read_text()


@pytest.mark.skipif(not Path("/etc/alternatives/awk").exists(), reason="not Debian's awk")
def test_debian_alternatives_work(cli: Cli) -> None:
    assert cli.ok("run", "-a", "--", "awk", "BEGIN { print 6 * 7 }") == "42\n"


def test_names_are_resolved_from_its_own_files(cli: Cli) -> None:
    script = "getent hosts $(hostname); getent passwd nobody; getent group nogroup; id -un"
    result = cli.ok("run", "--hostname", "box", "--attach", "--", "sh", "-c", script)
    assert [line.split(":")[0].split()[-1] for line in result.splitlines()] == [
        "box", "nobody", "nogroup", "root",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("user", "uid", "gid", "home"),
    [
        ("user", 1000, 1000, "/tmp"),
        ("1000", 1000, 1000, "/tmp"),
        ("nobody", 65534, 65534, "/"),
        ("user:nogroup", 1000, 65534, "/tmp"),
        ("4242", 4242, 0, "/"),
    ],
)
def test_user_is_what_its_own_passwd_says(
    user: str, uid: int, gid: int, home: str, cli: Cli
) -> None:
    live = cli.detach("--user", user, "--", *SLEEP)
    status = live.status()
    assert (status["Uid"].split(), status["Gid"].split()) == ([str(uid)] * 4, [str(gid)] * 4)
    assert live.environment()["HOME"] == home


def test_a_host_user_that_it_does_not_have_is_unknown(cli: Cli) -> None:
    on_host = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
    live = cli.detach("--", *SLEEP)
    inside = {line.split(":")[0] for line in live.root("etc/passwd").read_text().splitlines()}
    name = min(on_host - inside)
    assert name in cli.refused("run", "--user", name, "--", "true")


def test_any_user_can_write_to_tmp(cli: Cli) -> None:
    result = cli("run", "-u", "1000", "-a", "--", "sh", "-c", "echo x > /tmp/f && cat /tmp/f")
    assert (result.returncode, result.stdout) == (0, b"x\n")
