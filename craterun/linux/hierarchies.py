"""The cgroup hierarchies that are mounted here, and which of them are ours to use."""

from __future__ import annotations

import os

from craterun.core.hierarchy import Hierarchy
from craterun.linux.proc import Mount, parse_cgroup, parse_mountinfo

LEAF = "craterun.supervisor"
"""The cgroup in a delegated one that supervisor and keeper move into (`linux.controllers`)."""

V1_CONTROLLERS = frozenset(
    ("memory", "pids", "cpu", "cpuacct", "cpuset", "freezer", "blkio", "devices")
)
"""Controllers of version 1 that concern us."""


def hierarchies(mounts: list[Mount], own: str = "/") -> tuple[Hierarchy, ...]:
    """The cgroup hierarchies that can be written to, from mountinfo (cgroups(7)).

    A mount that shows only a part of its hierarchy, as inside another container, is left out:
    paths from /proc/PID/cgroup could not be found in it. Of a version 2 hierarchy that is not ours
    as a whole, the part that was delegated to us is taken, if it was.

    :param own: the version 2 cgroup of this process, as in /proc/self/cgroup
    """
    found: dict[str, Hierarchy] = {}
    for mount in mounts:
        if mount.readonly or mount.root != "/" or mount.kind not in ("cgroup", "cgroup2"):
            continue
        base = "" if os.access(mount.point, os.W_OK) else _delegated(mount, own)
        if base is None or not os.path.exists(f"{mount.point}/cgroup.procs"):
            continue  # not ours; or something else was mounted on top
        if mount.kind == "cgroup2":
            offered = tuple(_read(f"{mount.point}{base}/cgroup.controllers").split())
            found.setdefault("unified", Hierarchy(2, offered, mount.point, base))
        else:
            controllers = tuple(o for o in mount.options if o in V1_CONTROLLERS)
            if controllers:
                found.setdefault(",".join(controllers), Hierarchy(1, controllers, mount.point))
    return tuple(found.values())


def _delegated(mount: Mount, own: str) -> str | None:
    """The cgroup that may be used of a version 2 hierarchy whose root is somebody else's.

    Delegated is a cgroup in which we may make others, move processes and enable controllers
    (cgroups(7), "Cgroups v2 delegation"). Ours may be the leaf that `linux.controllers` made.
    """
    if mount.kind != "cgroup2":
        return None  # version 1 cannot be delegated safely
    base = os.path.dirname(own) if os.path.basename(own) == LEAF else own
    if base == "/":
        return None
    names = ("", "/cgroup.procs", "/cgroup.subtree_control")
    if all(os.access(f"{mount.point}{base}{name}", os.W_OK) for name in names):
        return base
    return None


def own_cgroup() -> str:
    """The version 2 cgroup of this process, ``/`` if there is no such hierarchy."""
    return parse_cgroup(_read("/proc/self/cgroup")).get("", "/")


def mount_table() -> list[Mount]:
    """All mounts that this process sees."""
    return parse_mountinfo(_read("/proc/self/mountinfo"))


def _read(path: str) -> str:
    # A mount point is bytes, and may hold a carriage return.
    with open(path, errors="surrogateescape", newline="\n") as file:
        return file.read()
