"""Where a container's processes are accounted for: its own directory in each cgroup hierarchy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from craterun.core.hierarchy import Hierarchy
from craterun.linux.proc import parse_cgroup


class Placement(NamedTuple):
    """Directories that belong to one container alone.

    :ivar unified: in the version 2 hierarchy, or None
    :ivar legacy: in version 1 hierarchies, by controller
    """

    unified: str | None = None
    legacy: Mapping[str, str] = MappingProxyType({})


def locate(container_id: str, pid: int | None, hierarchies: Iterable[Hierarchy]) -> Placement:
    """The cgroups of a container, whose first process is ``pid``.

    The kernel tells where a process is (cgroups(7), /proc/PID/cgroup); of that, the directory that
    is named after the container counts, so that neither an edited record nor a cgroup that the
    container made inside of its own leads elsewhere. Without such an answer it is the place where
    craterun puts containers, if that exists.
    """
    current: dict[str, str] = {}
    if pid is not None:
        try:
            with open(f"/proc/{pid}/cgroup", errors="surrogateescape", newline="\n") as file:
                current = parse_cgroup(file.read())
        except OSError:
            current = {}  # it has ended
    unified = None
    legacy: dict[str, str] = {}
    for hierarchy in hierarchies:
        key = "" if hierarchy.version == 2 else hierarchy.controllers[0]
        own = own_part(current.get(key, ""), container_id)
        path = (
            f"{hierarchy.top}/{hierarchy.parent}/{container_id}"
            if own is None
            else hierarchy.mountpoint + own
        )
        if own is None and not os.path.isdir(path):
            continue
        if hierarchy.version == 2:
            unified = path
        else:
            legacy |= dict.fromkeys(hierarchy.controllers, path)
    return Placement(unified, legacy)


def own_part(path: str, container_id: str) -> str | None:
    """``path`` up to the component that is the container's id; None if there is none."""
    parts = path.split("/")
    if container_id not in parts:
        return None
    return "/".join(parts[: parts.index(container_id) + 1])
