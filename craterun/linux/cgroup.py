"""Cgroup directories: make them, and find a process's (cgroups(7)). `emptying` removes them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import msgspec

from craterun.core.cgroups import PARENT, CgroupPlan, exec_parent, plan_cgroups
from craterun.core.errors import KernelRefusedError
from craterun.core.spec import HostFacts, Spec
from craterun.core.units import new_id
from craterun.linux.emptying import end, kill, processes, remove
from craterun.linux.proc import parse_cgroup

__all__ = [
    "create", "end", "for_exec", "kill", "of_process", "plan_for", "processes", "read", "remove",
    "remove_parents", "write_text",
]  # fmt: skip

_ATTEMPTS = 3
_MAKING_HINTS = {
    errno.EAGAIN: "a cgroup above has as many below it as its cgroup.max.descendants allows",
    errno.ENOSPC: "the kernel has no more numbers for cgroups of this controller (65535 for "
    "memory); that of a removed one is free when the last page charged to it is",
    errno.ENOMEM: "there is no memory left for it",
}
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
            hint = _MAKING_HINTS.get(error.errno or 0, "")
            raise KernelRefusedError(
                "create the container's cgroup", "mkdir", path, error.errno or 0, hint
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


def remove_parents(host: HostFacts) -> None:
    """Remove the directories common to all containers, if nobody uses them any more."""
    for hierarchy in host.hierarchies:
        try:
            os.rmdir(f"{hierarchy.top}/{PARENT}")
        except OSError:
            continue


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


def for_exec(joined: CgroupPlan, host: HostFacts, container_id: str) -> tuple[CgroupPlan, str]:
    """Make a cgroup for one exec below one of those that it joins.

    No controller is enabled in it, so the container's limits hold as for its other processes, and
    the rule against processes in inner cgroups does not apply. It serves to find, and kill, all
    that the command has started.

    :param joined: what `of_process` has found
    :returns: where to go, and the new directory, or "" where there can be none: it is not the
        container's own, or not ours to write to
    :raises FileNotFoundError: the container has ended
    """
    parent = exec_parent(joined, host, container_id)
    if parent is None:
        return joined, ""
    path = f"{parent}/exec-{new_id()}"
    try:
        os.mkdir(path)
    except FileNotFoundError:
        raise
    except OSError:
        return joined, ""
    if parent == joined.unified:
        return msgspec.structs.replace(joined, unified=path), path
    legacy = tuple(path if other == parent else other for other in joined.legacy)
    return msgspec.structs.replace(joined, legacy=legacy), path


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
