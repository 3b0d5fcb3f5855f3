"""Find out once what this host can do."""

from __future__ import annotations

import os
import re

from craterun.core.errors import UnsupportedHostError
from craterun.core.hostroot import ETC_NAMES, USR_NAMES
from craterun.core.spec import HostFacts
from craterun.linux.bindable import is_bindable
from craterun.linux.hierarchies import (
    LEAF,
    V1_CONTROLLERS,
    hierarchies,
    mount_table,
    own_cgroup,
)

__all__ = [
    "LEAF",
    "MINIMUM_KERNEL",
    "V1_CONTROLLERS",
    "hierarchies",
    "in_user_namespace",
    "is_in_memory",
    "kernel_version",
    "mount_table",
    "own_cgroup",
    "probe",
]

_CAP_SYS_CHROOT = 18
"""What setns(2) asks for of who enters a mount namespace."""
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""PROC_USER_INIT_INO, since Linux 3.8."""
MINIMUM_KERNEL = (5, 12)
"""mount_setattr(2), which makes a bound tree read-only as a whole, is the youngest call we need."""


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
    mounts, usr_entries = mount_table(), tuple(_usr_entries())
    user_namespace = in_user_namespace(_read("/proc/self/uid_map"), _user_namespace())
    taken = ["/etc", "/usr", *(f"/{name}" for name, link in usr_entries if not link)]
    return HostFacts(
        kernel=kernel,
        hierarchies=hierarchies(mounts, own_cgroup()),
        user_namespace=user_namespace,
        blank=not user_namespace
        and is_bearer_of(_CAP_SYS_CHROOT, _read("/proc/self/status"))
        and all(is_bindable(path, mounts) for path in taken),
        last_capability=int(_read("/proc/sys/kernel/cap_last_cap")),
        usr_entries=usr_entries,
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


def in_user_namespace(uid_map: str, inode: int = _INITIAL_USER_NAMESPACE) -> bool:
    """Whether /proc/self/uid_map is anything but the initial namespace's identity map, or
    /proc/self/ns/user has another inode than that one.
    """
    return uid_map.split() != ["0", "0", "4294967295"] or inode != _INITIAL_USER_NAMESPACE


def is_bearer_of(capability: int, status: str) -> bool:
    """Whether that is among the effective capabilities in /proc/self/status (capabilities(7))."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is None or bool(int(match[1], 16) >> capability & 1)


def _user_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/user").st_ino
    except FileNotFoundError:
        return _INITIAL_USER_NAMESPACE  # a kernel without user namespaces


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
