"""The ground benchmarks run on: places, a rootfs, cgroups of our own, commands.

Everything made here is undone when its context manager is left, also on an
error and (after :func:`exit_on_signals`) on SIGTERM.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

CGROUP_ROOT = Path("/sys/fs/cgroup")
APPLETS = ("sh", "true", "echo", "cat", "dd", "head", "sleep")
PREFIX = "craterun-bench-"


class BenchError(Exception):
    """A contender or a precondition failed; the message says which and how."""


@dataclass(frozen=True)
class Place:
    """A directory in which the states of all contenders lie."""

    name: str
    path: Path
    filesystem: str

    def __str__(self) -> str:
        """Name the place together with what it really is."""
        return f"{self.name} ({self.filesystem} at {self.path})"


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that clean-up code runs."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


def filesystem_of(path: Path) -> str:
    """Give the type of the filesystem that path lies on."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown filesystem"


@contextlib.contextmanager
def tmpfs_place() -> Iterator[Place]:
    """Mount a fresh tmpfs, and take it away again."""
    base = next(p for p in (Path("/run"), Path("/dev/shm")) if os.access(p, os.W_OK))
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "bench", path], check=True)
        try:
            yield Place("tmpfs", path, filesystem_of(path))
        finally:
            # A container that is just going away may still hold the mount.
            subprocess.run(["umount", "--lazy", path], check=True)
    finally:
        path.rmdir()


@contextlib.contextmanager
def disk_place() -> Iterator[Place]:
    """Make a work directory on the disk, and take it away again."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
    path.chmod(0o755)
    # ext4 without a journal passes over recently deleted inodes one by one when
    # it makes a file: whoever comes after a deletion nearby would pay for it, up
    # to thirty times the price of the file.  So nothing is deleted before the
    # end, and each run's directory is put into a block group of its own (+T).
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["chattr", "+T", path], stderr=subprocess.DEVNULL, check=False)
    try:
        yield Place("disk", path, filesystem_of(path))
    finally:
        shutil.rmtree(path)


PLACES = {"tmpfs": tmpfs_place, "disk": disk_place}


def make_rootfs(path: Path) -> Path:
    """Make a minimal root filesystem of a static busybox, and return its path."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BenchError("busybox is not installed (it has to be the static one)")
    for directory in ("bin", "etc", "dev", "proc", "sys", "tmp"):
        (path / directory).mkdir(parents=True)
    shutil.copy(busybox, path / "bin/busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    for name in ("hosts", "hostname", "resolv.conf"):
        (path / "etc" / name).touch()
    (path / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\n")
    # A dynamically linked busybox would fail much later, and less clearly.
    if subprocess.run(["chroot", path, "/bin/true"], check=False).returncode != 0:
        raise BenchError(f"{busybox} does not run in a rootfs of its own: not static?")
    return path


def _hierarchies() -> list[Path]:
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return [CGROUP_ROOT]
    return [path for path in CGROUP_ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def _processes(group: Path) -> list[int]:
    try:
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        # 0 stands for a process outside our pid namespace, and to kill(2) for us all.
        return [pid for pid in pids if pid > 0]
    except OSError:
        return []


def _remove_trees(groups: Sequence[Path]) -> None:
    # Killed processes take their time to go, and may have made one more cgroup
    # meanwhile: everything is looked at anew until nothing is left.
    deadline = time.monotonic() + 15
    while left := [group for group in groups if group.exists()]:
        if time.monotonic() > deadline:
            names = ", ".join(f"{group} (processes {_processes(group)})" for group in left)
            raise BenchError(f"cgroups cannot be removed: {names}")
        for group in left:
            # Innermost first: a cgroup with children cannot be removed.
            for path, _, _ in os.walk(group, topdown=False):
                for pid in _processes(Path(path)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        time.sleep(0.01)


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[str]:
    """Reserve a cgroup name; at the end kill and remove all there is below it.

    The contenders create the cgroups themselves, in the hierarchies they use.
    """
    if any((hierarchy / name).exists() for hierarchy in _hierarchies()):
        raise BenchError(f"there is a cgroup {name} already")
    try:
        yield name
    finally:
        _remove_trees([hierarchy / name for hierarchy in _hierarchies()])


def fresh(work: Path, name: str) -> Path:
    """Make a new directory for one run in a work directory."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))


@contextlib.contextmanager
def craterun_state(work: Path) -> Iterator[Path]:
    """Make a state root, and at the end take away any cgroup craterun left.

    The state itself stays until its place goes (see :func:`disk_place`).

    craterun removes the cgroups itself, so one that is still there is a fault
    of craterun's, and said aloud.  They are found by the names of the state's
    directories; those of other supervisors on this host are left alone.
    """
    path = fresh(work, "craterun")
    try:
        yield path
    finally:
        parents = [hierarchy / "craterun" for hierarchy in _hierarchies()]
        groups = (parent / entry.name for entry in path.iterdir() for parent in parents)
        left = [group for group in groups if group.is_dir()]
        _remove_trees(left)
        if left:
            print(f"!!! craterun left {len(left)} cgroups behind", file=sys.stderr, flush=True)


@contextlib.contextmanager
def session(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a session of its own, with piped stdin and stdout.

    Leaving the context checks its exit status; on an error in the context the
    whole session is ended.  What it wrote to stderr is part of the complaint.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=env,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
            status = process.wait()
        finally:
            if process.poll() is None:
                _end(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        if status != 0:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").strip().splitlines()
            detail = "\n  ".join(["", *lines[-15:]])
            raise BenchError(f"{Path(command[0]).name} ended with status {status}{detail}")


def _end(process: subprocess.Popen[str]) -> None:
    # SIGTERM first: contenders remove their own cgroups and containers on it.
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process.pid, look) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # A half-made container is the init of its pid namespace, and deaf to
    # SIGTERM.  The leader is not reaped before, so that the number is still its.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def settle(idle: float = 0.9, limit: float = 10.0) -> None:
    """Wait until the machine is idle, or for at most limit seconds.

    The kernel takes network namespaces down after their container has ended;
    without a pause one contender would pay for what the one before it left.
    """

    def sample() -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)

    deadline = time.monotonic() + limit
    before = sample()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        after = sample()
        if after[0] - before[0] >= idle * (after[1] - before[1]):
            return
        before = after


def warm_memory(size: int) -> None:
    """Make the kernel have this much free memory that is really there.

    A virtual machine may have given its free pages back to its host; whoever
    uses them first then waits for the host, at several times the price of the
    write.  They go back within seconds, so this has to be done right before a
    measurement.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()
