"""The ground benchmarks run on: places, a rootfs, cgroups of our own, commands.

Everything made here is undone when its context manager is left, also on an
error and (after :func:`exit_on_signals`) on a signal.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from craterun.bench.ground import (
    CGROUP_ROOT,
    BenchError,
    filesystem_of,
    fresh,
    hierarchies,
    own_cgroup,
    remove_trees,
    scratch,
    session,
    settle,
)
from craterun.bench.signals import cleaning_up, exit_on_signals, held

__all__ = [
    "CGROUP_ROOT", "PLACES", "BenchError", "Place", "craterun_state", "disk_place",
    "exit_on_signals", "fresh", "make_rootfs", "own_cgroup", "session", "settle", "tmpfs_place",
    "warm_memory",
]  # fmt: skip
APPLETS = ("sh", "true", "echo", "cat", "dd", "head", "sleep")
PREFIX = "craterun-bench-"


@dataclass(frozen=True)
class Place:
    """A directory in which the states of all contenders lie."""

    name: str
    path: Path
    filesystem: str

    def __str__(self) -> str:
        """Name the place together with what it really is."""
        return f"{self.name} ({self.filesystem} at {self.path})"


@contextlib.contextmanager
def tmpfs_place() -> Iterator[Place]:
    """Mount a fresh tmpfs, and take it away again."""
    base = next(p for p in ("/run", "/dev/shm") if os.access(p, os.W_OK))
    with scratch(PREFIX, base) as path:
        try:
            with held():
                subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", "mode=755", "bench", path], check=True
                )
            yield Place("tmpfs", path, filesystem_of(path))
        finally:
            with cleaning_up():
                if path.is_mount():
                    # A container that is just going away may still hold the mount.
                    subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def disk_place() -> Iterator[Place]:
    """Make a work directory on the disk, and take it away again."""
    # ext4 without a journal passes over recently deleted inodes one by one when
    # it makes a file: whoever comes after a deletion nearby would pay for it, up
    # to thirty times the price of the file.  So nothing is deleted before the
    # end, and each run's directory is put into a block group of its own (+T).
    with scratch(PREFIX, "/var/tmp") as path:
        path.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["chattr", "+T", path], stderr=subprocess.DEVNULL, check=False)
        yield Place("disk", path, filesystem_of(path))


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
        with cleaning_up():
            parents = [hierarchy / "craterun" for hierarchy in hierarchies()]
            groups = (parent / entry.name for entry in path.iterdir() for parent in parents)
            left = [group for group in groups if group.is_dir()]
            remove_trees(left)
            if left:
                print(f"!!! craterun left {len(left)} cgroups behind", file=sys.stderr, flush=True)


def warm_memory(size: int) -> None:
    """Make the kernel have this much free memory that is really there.

    A virtual machine may have given its free pages back to its host; whoever
    uses them first then waits for the host, at several times the price of the
    write.  They go back within seconds, so this has to be done right before a
    measurement.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()
