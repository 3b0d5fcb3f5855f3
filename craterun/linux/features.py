"""What `craterun info` tells: the kernel, its cgroups by controller, and what works or why not.

Nothing is created or changed to find out; what could only be found out so is said to be unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

import msgspec

from craterun.core.cgroups import serving
from craterun.core.errors import CraterunError
from craterun.core.spec import Hierarchy, HostFacts
from craterun.linux import host
from craterun.linux.cgroup import read
from craterun.linux.limits import bfq_is_used, cost_is_used
from craterun.linux.proc import Mount

Works = Literal["yes", "no", "unknown"]
Layout = Literal["unified", "hybrid", "legacy", "none"]

CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io", "freezer")
_NAMESPACES = ("pid", "mnt", "uts", "ipc", "net", "cgroup", "user")


class Controller(msgspec.Struct, frozen=True):
    """One cgroup controller.

    :ivar version: of the hierarchy that serves it, or None
    :ivar place: the directory below which containers get theirs, or None
    :ivar note: why it cannot be used, or what is missing in it
    """

    name: str
    works: Works
    version: int | None = None
    place: str | None = None
    note: str = ""


class Feature(msgspec.Struct, frozen=True):
    """Something that craterun builds on.

    :ivar note: how, or why not and what to do
    """

    name: str
    works: Works
    note: str = ""


class Report(msgspec.Struct, frozen=True):
    """All of it."""

    kernel: str
    machine: str
    user: int
    layout: Layout
    controllers: tuple[Controller, ...]
    features: tuple[Feature, ...]


def report() -> Report:
    """Look around. Needs no root, and tells then what this user can do."""
    name = os.uname()
    try:
        facts, problem = host.probe(), ""
    except CraterunError as error:
        facts, problem = HostFacts(kernel=host.kernel_version(name.release)), str(error)
    mounts = host.mount_table()
    return Report(
        kernel=name.release,
        machine=name.machine,
        user=os.geteuid(),
        layout=layout(mounts),
        controllers=tuple(_controller(c, facts, mounts) for c in CONTROLLERS),
        features=tuple(_features(facts, problem)),
    )


def layout(mounts: Iterable[Mount]) -> Layout:
    """Which of the three layouts in use this is."""
    kinds = {mount.kind for mount in mounts}
    # A version 1 hierarchy without controllers, such as systemd's own, does not make it hybrid.
    old = any(
        mount.kind == "cgroup" and host.V1_CONTROLLERS.intersection(mount.options)
        for mount in mounts
    )
    if "cgroup2" in kinds:
        return "hybrid" if old else "unified"
    return "legacy" if old else "none"


def _controller(name: str, facts: HostFacts, mounts: list[Mount]) -> Controller:
    if name == "freezer":
        unified = next((h for h in facts.hierarchies if h.version == 2), None)
        if unified is not None:
            return Controller(name, "yes", 2, unified.top, "cgroup.freeze; needs no controller")
    hierarchy = serving(name, facts)
    if hierarchy is None:
        return Controller(name, "no", note=_why_not(name, facts, mounts))
    note = _weakness(name, hierarchy)
    return Controller(name, "yes", hierarchy.version, hierarchy.top, note)


def _why_not(name: str, facts: HostFacts, mounts: list[Mount]) -> str:
    old = "blkio" if name == "io" else name
    disabled = ""
    with suppress(OSError), open("/proc/cgroups") as file:
        for line in file:
            words = line.split()
            if words[0] == old and words[3:] == ["0"]:
                disabled = f"disabled at boot: remove cgroup_disable={old}"
    if disabled:
        return disabled
    version_1 = [m for m in mounts if m.kind == "cgroup" and old in m.options]
    if version_1:
        return f"{version_1[0].point} belongs to root"
    for mount in mounts:
        with suppress(OSError):
            if (
                mount.kind == "cgroup2"
                and name in read(f"{mount.point}/cgroup.controllers").split()
            ):
                if not facts.hierarchies:
                    return "not delegated to this user: systemd-run --user --scope -p Delegate=yes"
                return "not delegated to this user: Delegate= in the unit user@.service"
    return "no mounted hierarchy offers it"


def _weakness(name: str, hierarchy: Hierarchy) -> str:
    if name == "memory" and hierarchy.version == 1:
        return "no --oom-group"
    if name == "io" and hierarchy.version == 1:
        return "--io-max leaves buffered writes alone"
    return ""


def _features(facts: HostFacts, problem: str) -> Iterable[Feature]:
    kernel = "{}.{}".format(*host.MINIMUM_KERNEL)
    yield Feature(
        f"Linux {kernel} or newer", "no" if problem else "yes", problem or "mount_setattr, clone3"
    )
    missing = [name for name in _NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
    yield Feature(
        "namespaces",
        "no" if missing else "yes",
        f"missing: {', '.join(missing)}" if missing else ", ".join(_NAMESPACES),
    )
    yield _user_namespaces()
    yield _pidfd()
    yield _born_in_cgroup(facts)
    yield _kill(facts)
    yield _swap(facts)
    yield _io_weight(facts)
    yield Feature("overlayfs", "yes", "not needed: a rootfs is a plain directory")


def _user_namespaces() -> Feature:
    name = "containers without root"
    for path, bad, remedy in (
        ("/proc/sys/user/max_user_namespaces", "0", "raise it"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set it to 1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "set it to 0"),
    ):
        with suppress(OSError):
            if read(path) == bad:
                return Feature(name, "no", f"{path} is {bad}: {remedy}")
    return Feature(name, "yes", "in a user namespace; limits need a delegated cgroup (version 2)")


def _pidfd() -> Feature:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Feature("pidfd", "no", os.strerror(error.errno or 0))
    return Feature("pidfd", "yes", "a process is never mistaken for another")


def _unified(facts: HostFacts) -> Hierarchy | None:
    return next((h for h in facts.hierarchies if h.version == 2), None)


def _born_in_cgroup(facts: HostFacts) -> Feature:
    name = "clone into cgroup"
    if _unified(facts) is None:
        return Feature(name, "no", "no writable version 2 hierarchy; processes move themselves")
    return Feature(name, "yes", "processes are born in their version 2 cgroup")


def _kill(facts: HostFacts) -> Feature:
    name = "cgroup.kill"
    if _unified(facts) is None:
        return Feature(name, "no", "no writable version 2 hierarchy; processes are signalled")
    if facts.kernel < (5, 14):
        return Feature(name, "no", "needs Linux 5.14; processes are signalled one by one")
    return Feature(name, "yes", "a container is killed at once")


def _swap(facts: HostFacts) -> Feature:
    name = "swap accounting"
    hierarchy = serving("memory", facts)
    if hierarchy is None:
        return Feature(name, "no", "no memory controller")
    if hierarchy.version == 1:
        if os.path.exists(f"{hierarchy.top}/memory.memsw.limit_in_bytes"):
            return Feature(name, "yes", "--memory-swap")
        return Feature(name, "no", "no --memory-swap: boot with swapaccount=1")
    # The root of version 2 has no such files, but any cgroup below it with the controller has.
    with suppress(OSError), os.scandir(hierarchy.top) as entries:
        for entry in entries:
            if os.path.exists(f"{entry.path}/memory.max"):
                if os.path.exists(f"{entry.path}/memory.swap.max"):
                    return Feature(name, "yes", "--memory-swap")
                return Feature(name, "no", "no --memory-swap: boot without cgroup.memory=noswap")
    return Feature(name, "unknown", "no cgroup has the memory controller yet that would show it")


def _io_weight(facts: HostFacts) -> Feature:
    name = "disk weights"
    hierarchy = serving("io", facts)
    if hierarchy is None:
        return Feature(name, "no", "no io controller")
    if bfq_is_used() or (hierarchy.version == 2 and cost_is_used(hierarchy.top)):
        return Feature(name, "yes", "--io-weight")
    return Feature(name, "no", "no --io-weight: no disk uses the BFQ scheduler or io.cost")
