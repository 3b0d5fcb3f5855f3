"""Find out once what this host can do."""

from __future__ import annotations

import os
import re

from craterun.core.errors import UnsupportedHostError
from craterun.core.hostroot import ETC_NAMES, USR_NAMES
from craterun.core.spec import Hierarchy, HostFacts
from craterun.linux.proc import Mount, parse_cgroup, parse_mountinfo

MINIMUM_KERNEL = (5, 12)
"""mount_setattr(2), which makes a bound tree read-only as a whole, is the youngest call we need."""

LEAF = "craterun.supervisor"
"""The cgroup in a delegated one that supervisor and keeper move into (`linux.controllers`)."""

V1_CONTROLLERS = frozenset(
    ("memory", "pids", "cpu", "cpuacct", "cpuset", "freezer", "blkio", "devices")
)
"""Controllers of version 1 that concern us."""


def probe() -> HostFacts:
    """Read the facts from the running kernel and the host's filesystem.

    :raises UnsupportedHostError: the kernel is too old
    """
    kernel = kernel_version(os.uname().release)
    if kernel < MINIMUM_KERNEL:
        raise UnsupportedHostError(
            f"Linux {kernel[0]}.{kernel[1]} is too old: craterun needs "
            f"{MINIMUM_KERNEL[0]}.{MINIMUM_KERNEL[1]} or newer (mount_setattr)"
        )
    return HostFacts(
        kernel=kernel,
        hierarchies=hierarchies(mount_table(), own_cgroup()),
        user_namespace=in_user_namespace(_read("/proc/self/uid_map")),
        last_capability=int(_read("/proc/sys/kernel/cap_last_cap")),
        usr_entries=tuple(_usr_entries()),
        etc_entries=tuple(
            f"{name}/" if os.path.isdir(f"/etc/{name}") else name
            for name in ETC_NAMES
            if os.path.exists(f"/etc/{name}")
        ),
    )


def kernel_version(release: str) -> tuple[int, int]:
    """(major, minor) of a release like ``6.1.0-18-amd64``."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def in_user_namespace(uid_map: str) -> bool:
    """Whether /proc/self/uid_map is anything but the initial namespace's identity map."""
    return uid_map.split() != ["0", "0", "4294967295"]


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


def is_in_memory(path: str) -> bool:
    """Whether ``path``, or the nearest directory above it that exists, is on a tmpfs or ramfs."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    return any(m.device == numbers and m.kind in ("tmpfs", "ramfs") for m in mount_table())


def _usr_entries() -> list[tuple[str, str]]:
    entries = []
    for name in USR_NAMES:
        path = f"/{name}"
        if os.path.islink(path):
            entries.append((name, os.readlink(path)))
        elif os.path.isdir(path):
            entries.append((name, ""))
    return entries


def _read(path: str) -> str:
    # A mount point is bytes, and may hold a carriage return.
    with open(path, errors="surrogateescape", newline="\n") as file:
        return file.read()
