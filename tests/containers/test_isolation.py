"""What a container cannot see, reach or change: namespaces, root, /proc, /sys, privileges."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from craterun.core import flags as f
from craterun.linux import calls
from tests.containers import helpers
from tests.containers.helpers import (
    DEFAULT_CAPABILITIES,
    PATIENCE_SECONDS,
    SLEEP,
    Cli,
    Live,
    cgroup_directories,
    mount_namespace,
    read_line,
    run_python,
)
from tests.kernel import prepared
from tests.kernel.forked import in_child

cli = helpers.cli

NAMESPACES = ("pid", "pid_for_children", "mnt", "uts", "ipc", "net", "cgroup")


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--", *SLEEP)


# --- namespaces -----------------------------------------------------------------------------------


def test_every_namespace_is_its_own(cli: Cli, rootfs: Path, live: Live) -> None:
    other = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    host = Live(os.getpid())
    for kind in NAMESPACES:
        assert len({p.namespace(kind) for p in (live, other, host)}) == 3, kind


def test_the_command_is_pid_1_in_a_session_without_terminal(cli: Cli, rootfs: Path) -> None:
    # A CLI with a controlling terminal: nothing inside may reach it (TIOCSTI, CVE-2017-5226).
    controller, terminal = os.openpty()
    take_terminal = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    wrapped = cli.behind(sys.executable, "-c", take_terminal)
    process = wrapped.start("run", "--rootfs", str(rootfs), "--", *SLEEP, stdin=terminal)
    first = cli.live(read_line(process))
    fields = (first.proc / "stat").read_text().rpartition(")")[2].split()
    session, terminal_number = int(fields[3]), int(fields[4])
    assert first.status()["NSsid"].split()[-1] == "1"
    assert (session, terminal_number) == (first.pid, 0)
    assert str(os.ttyname(terminal)) not in first.descriptors().values()
    found = cli("exec", first.id, "--", "sh", "-c", ": < /dev/tty")
    assert b"No such device or address" in found.stderr
    os.close(controller)
    os.close(terminal)


def test_hostname_is_the_short_id(cli: Cli, live: Live) -> None:
    before = os.uname().nodename
    assert _hostname(live) == live.id[:12]
    assert os.uname().nodename == before


def test_hostname_is_the_one_asked_for_up_to_64_bytes(cli: Cli, rootfs: Path) -> None:
    for name in ("web-1.example", "h" * 64):
        live = cli.detach("--rootfs", str(rootfs), "--hostname", name, "--", *SLEEP)
        assert _hostname(live) == name
        assert live.root("etc/hostname").read_text() == f"{name}\n"


def _hostname(live: Live) -> str:
    command = ["nsenter", f"--uts=/proc/{live.pid}/ns/uts", "uname", "-n"]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode().strip()


def test_loopback_is_up_and_the_only_interface(cli: Cli, rootfs: Path, live: Live) -> None:
    lines = (live.proc / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]
    flags = int(live.root("sys/class/net/lo/flags").read_text(), 16)
    assert flags & 1, "IFF_UP"
    # With lo down, the kernel would say that the network is unreachable.
    refused = cli("exec", live.id, "--", "nc", "127.0.0.1", "9")
    assert b"Connection refused" in refused.stderr


# --- root and mounts ------------------------------------------------------------------------------


def test_only_the_rootfs_and_our_own_filesystems_are_mounted(rootfs: Path, live: Live) -> None:
    assert os.stat(live.root("/")).st_ino == rootfs.stat().st_ino
    first, *others = live.mounts()
    host_device = f"{os.major(rootfs.stat().st_dev)}:{os.minor(rootfs.stat().st_dev)}"
    assert (first.point, first.device) == ("/", host_device)
    assert str(rootfs).endswith(first.root)
    for mount in others:
        assert mount.kind in ("proc", "sysfs", "tmpfs", "devpts", "mqueue"), mount
        assert mount.device != host_device, mount
        assert mount.point.startswith(("/proc", "/sys", "/dev", "/etc/")), mount


def test_the_old_root_cannot_be_reached_by_a_chroot_escape(cli: Cli, tmp_path: Path) -> None:
    # Root keeps CAP_SYS_CHROOT: the classic way out of a chroot must end at the container's root.
    marker = tmp_path / "on-the-host"
    marker.touch()
    script = (
        "mkdir '/tmp/d' or die; chroot '/tmp/d' or die; chdir '..' for 1 .. 40; chroot '.' or die;"
        f"print -e '{marker}' ? 'out' : 'in', ' ', -e '/proc/self' ? 'container' : 'nowhere'"
    )
    assert marker.exists()
    assert cli.ok("run", "--attach", "--", "perl", "-e", script) == "in container"


@pytest.mark.cgroup_v2  # of another kernel
def test_beneath_the_root_there_is_what_was_made_for_it_and_nothing_of_the_host(live: Live) -> None:
    def beneath() -> tuple[list[str], list[list[str]], list[list[str]]]:
        proc = os.open("/proc/self", os.O_PATH)

        def at(path: str) -> int:
            return os.open(path, os.O_RDONLY, dir_fd=proc)

        prepared.setns(os.open(f"/proc/{live.pid}/ns/mnt", os.O_RDONLY), f.CLONE_NEWNS)
        calls.unshare(f.CLONE_NEWNS)  # what follows is not done to the container
        inside = os.listdir("/")
        mounts, names = [], []
        for _ in range(2):
            prepared.umount2(b"/", f.MNT_DETACH)
            prepared.setns(at("ns/mnt"), f.CLONE_NEWNS)
            mounts.append(os.read(at("mountinfo"), 1 << 20).decode().splitlines())
            names.append(sorted(os.listdir("/")))
        return inside, mounts, names

    inside, mounts, names = in_child(beneath)
    assert "proc" in inside
    # Its own tmpfs, which parts of /dev and /etc are bound from; and the end.
    assert names == [["dev", "empty", "hostname", "hosts", "resolv.conf", "shm"], []]
    for (only,) in mounts:
        assert only.split()[3:5] == ["/", "/"]
    assert mounts[1][0].split()[5] == "ro,nosuid,nodev,noexec,relatime"


def test_root_inside_may_make_a_user_namespace(cli: Cli) -> None:
    # The kernel forbids it to whoever is in a chroot (unshare(2)), and a container is not.
    assert cli.ok("run", "--attach", "--", "unshare", "-U", "id", "-u") == "65534\n"


def test_it_takes_no_capability_to_change_the_root(cli: Cli, rootfs: Path) -> None:
    # Without CAP_SYS_CHROOT, pivot_root is the way.
    without = cli.behind("setpriv", "--bounding-set", "-sys_chroot", "--inh-caps", "-sys_chroot")
    user = ("run", "--attach", "--user", "1000", "--rootfs", str(rootfs))
    assert without.ok(*user, "--", "id", "-u") == "1000\n"


def test_a_supervisor_in_a_chroot_runs_what_it_sees_there(
    cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    # pivot_root leads nobody out of one, and nobody has to do that in there.
    changed = tmp_path / "changed"
    changed.mkdir()
    (rootfs / "marker").touch()
    script = (
        'mount --make-rprivate / && mount --rbind / "$1" && mount -t tmpfs none "$1/mnt" &&'
        'mkdir "$1/mnt/only-here" && exec chroot "$@"'
    )
    there = cli.behind("unshare", "-m", "sh", "-c", script, "sh", str(changed))
    run = ("run", "--attach", "--rootfs", str(rootfs))
    assert there.ok(*run, "--", "ls", "/marker") == "/marker\n"
    assert there.ok("run", "--attach", "--", "ls", "-d", "/usr", "/proc/1") == "/proc/1\n/usr\n"


_PROPAGATION = """
import json, sys, trio
from pathlib import Path
from craterun import Spec, Supervisor

state, rootfs = sys.argv[1:]
script = "mount -t tmpfs none /mnt && echo mounted && cat /proc/self/mountinfo && read x < /go;" \
    "cat /proc/self/mountinfo"

def outside():
    return Path("/proc/self/mountinfo").read_text()

async def main():
    before = outside()
    async with Supervisor(state) as supervisor:
        spec = Spec(command=("sh", "-c", script), rootfs=rootfs,
                    capabilities=("SYS_ADMIN", "DAC_OVERRIDE"))
        container = await supervisor.start(spec)
        reader, inside = container.follow(1), b""
        while b" /mnt " not in inside:
            inside += await reader.receive()
        during = outside()
        await trio.run_process(["mount", "-t", "tmpfs", "none", f"{rootfs}/later"])
        Path(rootfs, "go").write_text("go\\n")
        while data := await reader.receive():
            inside += data
        reader.close()
        await container.wait()
        await trio.run_process(["umount", f"{rootfs}/later"])
    print(json.dumps({"before": before, "during": during, "after": outside(),
                      "inside": inside.decode(), "stderr": Path(
                          state, container.id, "stderr.log").read_text()}))

trio.run(main)
"""


def test_mounts_propagate_neither_out_nor_in(state_root: Path, rootfs: Path) -> None:
    (rootfs / "mnt").mkdir()
    (rootfs / "later").mkdir()
    os.mkfifo(rootfs / "go")
    setup = 'mount --bind "$1" "$1"; mount --make-rshared /'
    with mount_namespace(setup, rootfs) as aside:
        seen = run_python(_PROPAGATION, state_root, rootfs, prefix=aside.enter)
    assert isinstance(seen, dict)
    assert " shared:" in seen["before"]  # otherwise nothing could have propagated
    assert (seen["stderr"], seen["inside"].startswith("mounted\n")) == ("", True)
    assert seen["during"] == seen["before"]
    assert seen["after"] == seen["before"]
    assert " /later " not in seen["inside"]
    assert " shared:" not in seen["inside"]
    assert " master:" not in seen["inside"]


# --- /proc and /sys -------------------------------------------------------------------------------


def test_proc_shows_the_containers_processes_only(live: Live) -> None:
    assert live.mount("/proc").kind == "proc"
    assert [name for name in os.listdir(live.root("proc")) if name.isdigit()] == ["1"]


@pytest.mark.parametrize("path", ["sys", "proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/fs"])
def test_kernel_settings_are_read_only(path: str, live: Live) -> None:
    if not Path("/", path).exists():
        assert not live.root(path).exists()
        return
    assert os.statvfs(live.root(path)).f_flag & os.ST_RDONLY


def test_root_inside_cannot_write_kernel_settings(cli: Cli, live: Live) -> None:
    for path in ("proc/sys/kernel/hostname", "proc/sys/vm/drop_caches", "sys/class/net/lo/mtu"):
        result = cli("exec", live.id, "--", "sh", "-c", f"echo 1 > /{path}")
        assert b"Read-only file system" in result.stderr
    # Nor make them writable again: that takes CAP_SYS_ADMIN.
    for path in ("proc/sys", "sys"):
        result = cli("exec", live.id, "--", "mount", "-o", "remount,rw", f"/{path}")
        assert result.returncode != 0
        assert os.statvfs(live.root(path)).f_flag & os.ST_RDONLY


@pytest.mark.parametrize(
    "path",
    ["proc/acpi", "proc/interrupts", "proc/kcore", "proc/keys", "proc/scsi", "proc/timer_list",
     "proc/sched_debug", "sys/firmware"],
)  # fmt: skip
def test_what_tells_about_the_host_is_masked(path: str, live: Live) -> None:
    masked = live.root(path)
    if not Path("/", path).exists():
        assert not masked.exists()
    elif masked.is_dir():
        assert os.listdir(masked) == []
        assert os.statvfs(masked).f_flag & os.ST_RDONLY
    else:
        assert _device(masked) == (1, 3)


def test_no_cgroup_file_can_be_seen_or_written(live: Live) -> None:
    assert not [mount for mount in live.mounts() if mount.kind.startswith("cgroup")]
    assert os.listdir(live.root("sys/fs/cgroup")) == []


def _device(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    assert stat.S_ISCHR(found.st_mode), path
    return os.major(found.st_rdev), os.minor(found.st_rdev)


# --- /dev -----------------------------------------------------------------------------------------

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
           "tty": (5, 0)}  # fmt: skip
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}  # fmt: skip
FILESYSTEMS = {"pts": "devpts", "shm": "tmpfs", "mqueue": "mqueue"}


def test_dev_holds_exactly_what_is_listed(live: Live) -> None:
    dev = live.root("dev")
    assert live.mount("/dev").kind == "tmpfs"
    assert set(os.listdir(dev)) == {*DEVICES, *LINKS, *FILESYSTEMS}
    for name, numbers in DEVICES.items():
        assert _device(dev / name) == numbers
        assert stat.S_IMODE(os.lstat(dev / name).st_mode) == 0o666
    for name, target in LINKS.items():
        assert os.readlink(dev / name) == target
    for name, kind in FILESYSTEMS.items():
        assert live.mount(f"/dev/{name}").kind == kind
        if os.path.ismount(f"/dev/{name}"):
            assert os.stat(dev / name).st_dev != os.stat(f"/dev/{name}").st_dev
    assert stat.S_IMODE(os.stat(dev / "shm").st_mode) == 0o1777
    assert os.listdir(dev / "pts") == ["ptmx"]


@pytest.mark.parametrize("user", ["root", "alice"])
def test_devices_work_for_every_user(user: str, cli: Cli, rootfs: Path) -> None:
    script = (
        "head -c 3 /dev/zero | tr '\\0' z; head -c 16 /dev/urandom | wc -c; echo x > /dev/null;"
        "cat /dev/null; echo from-stdin | cat /dev/stdin; echo from-fd | cat /dev/fd/0;"
        "exec 3<> /dev/ptmx && ls /dev/pts; echo data > /dev/shm/file && cat /dev/shm/file;"
        "echo x 2>/dev/null > /dev/full || echo full"
    )
    result = cli("run", "--rootfs", str(rootfs), "-u", user, "-a", "--", "sh", "-c", script)
    expected = "zzz16 from-stdin from-fd 0 ptmx data full"
    assert " ".join(result.stdout.decode().split()) == expected


# --- privileges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "effective"), [("root", DEFAULT_CAPABILITIES), ("alice", 0)])
def test_capabilities_are_the_planned_few(
    user: str, effective: int, cli: Cli, rootfs: Path
) -> None:
    status = cli.detach("--rootfs", str(rootfs), "--user", user, "--", *SLEEP).status()
    found = {kind: int(status[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd", "Inh", "Amb")}
    assert found == {
        "Eff": effective, "Prm": effective, "Bnd": DEFAULT_CAPABILITIES, "Inh": 0, "Amb": 0,
    }  # fmt: skip


def test_signal_state_and_umask_are_reset(cli: Cli, rootfs: Path) -> None:
    spoil = (
        "import os, signal, sys; os.umask(0o77);"
        "[signal.signal(s, signal.SIG_IGN) for s in (1, 2, 3, 13, 15, 17, 25)];"
        "signal.pthread_sigmask(signal.SIG_BLOCK, (1, 12, 15, 40));"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    spoilt = cli.behind(sys.executable, "-c", spoil)
    for mode in ((), ("--init",)):
        status = spoilt.detach("--rootfs", str(rootfs), *mode, "--", *SLEEP).siblings()[-1].status()
        assert status["Name"] == "sleep"
        signals = {kind: int(status[f"Sig{kind}"], 16) for kind in ("Blk", "Ign", "Cgt")}
        assert signals == {"Blk": 0, "Ign": 0, "Cgt": 0}
        assert status["Umask"] == "0022"


_MANY = """
import json, os, sys, trio
from craterun import Spec, Supervisor
from tests.containers.helpers import Live
from tests.leaks import take_footprint

async def main():
    rootfs = sys.argv[2]
    with trio.CancelScope() as scope:
        async with Supervisor(sys.argv[1]) as supervisor:
            await supervisor.start(Spec(command=("sleep", "1000000"), rootfs=rootfs, name="long"))
            for _ in range(8):
                container = await supervisor.start(Spec(command=("true",), rootfs=rootfs))
                await container.wait()
            for _ in range(3):
                execution = await supervisor.execute("long", ("true",))
                while await execution.receive(1) or await execution.receive(2): ...
                await execution.wait()
            print(json.dumps([Live(pid).status()["State"] for pid in take_footprint().processes]))
            scope.cancel()

trio.run(main)
"""


def test_no_zombie_is_left_while_others_run(state_root: Path, rootfs: Path) -> None:
    states = run_python(_MANY, state_root, rootfs)
    assert isinstance(states, list)
    assert len(states) == 2, "the keeper and the container that still runs"
    assert not [state for state in states if state.startswith("Z")]


# --- cgroups --------------------------------------------------------------------------------------


@pytest.mark.cgroup_v2
def test_container_has_a_cgroup_of_its_own_in_each_hierarchy(cli: Cli, live: Live) -> None:
    assert live.cgroups(), (live.proc / "cgroup").read_text()
    for directory in live.cgroups():
        assert (directory / "cgroup.procs").read_text().split() == [str(live.pid)]
    # Its cgroup namespace begins there: from inside it is the root.
    assert "0::/\n" in cli.ok("exec", live.id, "--", "cat", "/proc/1/cgroup")


@pytest.mark.cgroup_v2
def test_cgroup_is_gone_at_the_end(cli: Cli, live: Live) -> None:
    directories = live.cgroups()
    assert all(directory.is_dir() for directory in directories)
    cli.ok("kill", live.id)
    assert cli.ok("wait", live.id) == "137\n"
    assert not [directory for directory in directories if directory.exists()]


@pytest.mark.cgroup_v2
def test_foreign_processes_left_in_a_cgroup_are_killed(cli: Cli, rootfs: Path, live: Live) -> None:
    for number in range(len(live.cgroups())):
        container = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
        directories = container.cgroups()
        with ExitStack() as stack:
            strays = [stack.enter_context(subprocess.Popen(SLEEP)) for _ in range(8)]
            for stray in strays:
                stack.callback(stray.kill)
                (directories[number] / "cgroup.procs").write_text(str(stray.pid))
                assert cgroup_directories(stray.pid, container.id) == [directories[number]]
            cli.ok("kill", container.id)
            assert cli.ok("wait", container.id) == "137\n"
            assert [stray.wait(PATIENCE_SECONDS) for stray in strays] == [-9] * 8
        assert not [directory for directory in directories if directory.exists()]
        assert cli.record(container.id)["error"] is None


def test_the_command_line_of_init_tells_nothing_of_the_host(cli: Cli, rootfs: Path) -> None:
    """It is a fork of the keeper, whose arguments are paths of the host."""
    shown = cli("run", "--init", "-a", "--rootfs", str(rootfs), "--", "cat", "/proc/1/cmdline")
    assert shown.stdout.rstrip(b"\0") == b"craterun-init"
