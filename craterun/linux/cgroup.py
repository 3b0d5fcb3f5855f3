"""Cgroup directories: make and remove them, find a process's, kill what is inside (cgroups(7))."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from craterun.core.cgroups import PARENT, CgroupPlan, plan_cgroups
from craterun.core.errors import KernelRefusedError
from craterun.core.spec import HostFacts, Spec
from craterun.linux import freezer
from craterun.linux.proc import parse_cgroup

_ATTEMPTS = 3
_REMOVED = (errno.ENOENT, errno.ENODEV)
"""Of a cgroup that was removed before its file was opened, or while it was open."""
KILL_SECONDS = 2.0
READ_BYTES = 65536


def plan_for(spec: Spec, container_id: str, host: HostFacts) -> CgroupPlan:
    """The cgroups of a container that is asked for by ``spec``.

    :raises UsageError: its parent cgroup or a device does not exist
    :raises LimitError: a limit cannot be enforced here
    """
    # Imports that a container without limits does not wait for.
    if spec.cgroup_parent is not None:
        from craterun.linux.controllers import below

        host = below(spec.cgroup_parent, host)
    limits = spec.limits
    if limits.io_max:
        from craterun.linux.limits import resolve_devices

        limits = resolve_devices(limits)
    return plan_cgroups(container_id, host, limits)


def create(plan: CgroupPlan) -> None:
    """Make all directories of ``plan``, parents included, and set its limits; all or nothing.

    :raises KernelRefusedError: the kernel refused one
    :raises LimitError: a limit cannot be enforced
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
    if plan.welcome or plan.needed or plan.cpusets or plan.writes:
        try:
            _set_up(plan)
        except BaseException:
            remove(made)
            raise


def _set_up(plan: CgroupPlan) -> None:
    # Imported when there is something to be done: most containers do not wait for it.
    from craterun.linux import controllers

    if plan.unified is not None:
        controllers.enable(plan.unified, plan.top, plan.needed, plan.welcome)
    try:
        controllers.fill_cpusets(plan)
    except OSError as error:
        raise KernelRefusedError(
            "prepare the container's cpuset", "write", plan.cpusets[0], error.errno or 0
        ) from error
    if plan.writes:
        from craterun.linux import limits

        limits.apply(plan.writes)


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
            os.rmdir(f"{hierarchy.top}/{PARENT}")
        except OSError:
            continue


def processes(path: str) -> list[int]:
    """Pids of the processes directly in the cgroup ``path``."""
    try:
        with open(f"{path}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError as error:
        if error.errno not in _REMOVED:
            raise
        return []


def kill(paths: Iterable[str], seconds: float = KILL_SECONDS) -> None:
    """SIGKILL every process in the cgroups ``paths`` and wait until they have ended.

    Returns after ``seconds`` all the same; `remove` then tells which cgroups are still in use.
    ``cgroup.kill`` kills without a race (Linux 5.14); in a version 1 hierarchy the signal goes to
    what is found there, again until nothing is.
    """
    deadline = time.monotonic() + seconds
    paths = list(paths)
    while time.monotonic() < deadline:
        for path in paths:
            _write_kill(path)
        found = {pid for path in paths for pid in processes(path)}
        if not found:
            return
        for pid in found:
            _kill_process(pid, paths, deadline)


def _write_kill(path: str) -> None:
    # Without O_CREAT: a version 1 hierarchy would say EPERM instead of ENOENT.
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _REMOVED:
            raise


def _kill_process(pid: int, paths: list[str], deadline: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Still one of them? The number may have been reused before it was opened.
        if not any(pid in processes(path) for path in paths):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        freezer.release_killed(paths)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def of_process(pid: int, host: HostFacts, container_id: str) -> CgroupPlan:
    """The cgroups that process ``pid`` of a container is in, for another process to join.

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
            if path is not None and f"/{container_id}" in path:
                legacy.append(hierarchy.mountpoint + path)
    return CgroupPlan(unified, tuple(legacy))


def write_text(path: str, text: str) -> None:
    """Write a cgroup file, which must exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The content of a cgroup file, without the final newline."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, READ_BYTES).decode().strip()
    finally:
        os.close(fd)
