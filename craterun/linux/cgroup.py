"""Cgroup directories: make and remove them, find a process's, kill what is inside (cgroups(7))."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from craterun.core.cgroups import PARENT, CgroupPlan
from craterun.core.errors import KernelRefusedError
from craterun.core.spec import HostFacts
from craterun.linux.proc import parse_cgroup

_ATTEMPTS = 3


def create(plan: CgroupPlan) -> None:
    """Make all directories of ``plan``, parents included; all or none.

    :raises KernelRefusedError: the kernel refused one
    """
    made: list[str] = []
    for path in plan.paths:
        try:
            _make(path)
        except OSError as error:
            remove(made)
            raise KernelRefusedError(
                "create the container's cgroup", "mkdir", path, error.errno or 0
            ) from error
        made.append(path)


def _make(path: str) -> None:
    # The common parent goes away with the last container of any supervisor on this host, so it may
    # vanish between the two calls.
    for _ in range(_ATTEMPTS):
        try:
            os.mkdir(path)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path))
        else:
            return
    os.mkdir(path)


def remove(paths: Iterable[str]) -> list[str]:
    """Remove empty cgroups. Returns those that could not be, being in use.

    A cgroup that is already gone counts as removed.
    """
    left = []
    for path in paths:
        try:
            _remove_tree(path)
        except FileNotFoundError:
            pass
        except OSError:
            left.append(path)
    return left


def _remove_tree(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        # Something inside made cgroups of its own: depth first, they go before their parent.
        with os.scandir(path) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        if not children:
            raise
        for child in children:
            _remove_tree(child)
        os.rmdir(path)


def remove_parents(host: HostFacts) -> None:
    """Remove the directories common to all containers, if nobody uses them any more."""
    for hierarchy in host.hierarchies:
        try:
            os.rmdir(f"{hierarchy.mountpoint}/{PARENT}")
        except OSError:
            continue


def processes(path: str) -> list[int]:
    """Pids of the processes directly in the cgroup ``path``."""
    try:
        with open(f"{path}/cgroup.procs") as file:
            return [int(line) for line in file]
    except FileNotFoundError:
        return []


def kill(paths: Iterable[str]) -> None:
    """SIGKILL every process in the cgroups ``paths``.

    ``cgroup.kill`` does it at once and without a race (Linux 5.14); in a version 1 hierarchy the
    signal goes to the pids found there, which their pid namespace's end has usually killed before.
    """
    for path in paths:
        try:
            # Without O_CREAT: a version 1 hierarchy would say EPERM instead of ENOENT.
            fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        except FileNotFoundError:
            for pid in processes(path):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def of_process(pid: int, host: HostFacts) -> CgroupPlan:
    """The cgroups that process ``pid`` is in, for another process to join.

    :raises ProcessLookupError: it has ended
    """
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            paths = parse_cgroup(file.read())
    except FileNotFoundError:
        raise ProcessLookupError(3, os.strerror(3), str(pid)) from None
    unified = None
    legacy = []
    for hierarchy in host.hierarchies:
        if hierarchy.version == 2:
            unified = hierarchy.mountpoint + paths.get("", "/")
        else:
            path = paths.get(hierarchy.controllers[0])
            if path is not None and f"/{PARENT}/" in path:
                legacy.append(hierarchy.mountpoint + path)
    return CgroupPlan(unified, tuple(legacy))
