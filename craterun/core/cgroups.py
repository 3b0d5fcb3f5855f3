"""Which cgroup directories a container gets, and what is written there: pure functions.

A controller is served by exactly one hierarchy: on a hybrid host some are on version 1, some on
version 2. So every question here is asked for each controller.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from craterun.core.errors import LimitError
from craterun.core.limits import Limits
from craterun.core.spec import Hierarchy, HostFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from craterun.core.limit_files import Content

PARENT = "craterun"
"""Every container's cgroup lies below this one, in each hierarchy, unless told otherwise."""

ACCOUNTED = ("memory", "cpu", "cpuacct", "pids")
"""Controllers that every container has, for limits and for accounting. A version 2 hierarchy, where
there is one, accounts processor time without any, so that cpuacct is left out.

Killing and pausing need none: the pid namespace ends as a whole with its first process, and a
version 2 hierarchy, where there is one, freezes without controllers.
"""

_WEIGHING = {"cpu", "cpuset", "memory", "blkio"}
"""Version 1 controllers to which a child cgroup is not the same as its parent."""

_OLD_NAMES = {"io": "blkio"}
_NOTHING = Limits()


class Write(msgspec.Struct, frozen=True):
    """What one file shall say before the container's first process is there."""

    directory: str
    content: Content

    @property
    def path(self) -> str:
        """The file."""
        return f"{self.directory}/{self.content.file}"


class CgroupPlan(msgspec.Struct, frozen=True):
    """Directories to make, parents first made by whoever makes them.

    :ivar unified: the version 2 directory, which the first process is born in, or None
    :ivar legacy: version 1 directories, which the first process moves itself into
    :ivar top: version 2: the directory that controllers are enabled from, downwards
    :ivar needed: version 2: controllers without which a limit would not hold, each with its option
    :ivar welcome: version 2: controllers that account; a host that refuses them is fit all the same
    :ivar cpusets: those of ``legacy`` that no process can enter before they have been filled
    :ivar writes: the limits
    """

    unified: str | None
    legacy: tuple[str, ...]
    top: str = ""
    needed: dict[str, str] = {}
    welcome: tuple[str, ...] = ()
    cpusets: tuple[str, ...] = ()
    writes: tuple[Write, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All directories."""
        return (*((self.unified,) if self.unified else ()), *self.legacy)


def plan_cgroups(container_id: str, host: HostFacts, limits: Limits = _NOTHING) -> CgroupPlan:
    """A directory in the version 2 hierarchy, in each version 1 one that accounts, and in those
    that ``limits`` needs besides.

    :param limits: with devices as MAJOR:MINOR
    :raises LimitError: a limit cannot be enforced here
    """
    shape = _shape(host, limits)
    return CgroupPlan(
        None if shape.unified is None else shape.unified + container_id,
        tuple([above + container_id for above in shape.legacy]),
        shape.top,
        shape.needed,
        shape.welcome,
        tuple([above + container_id for above in shape.cpusets]),
        tuple([Write(write.directory + container_id, write.content) for write in shape.writes]),
    )


@lru_cache(maxsize=64)
def _shape(host: HostFacts, limits: Limits) -> CgroupPlan:
    """The plan of any container with these limits: its directories lack their last component."""
    asked = _controllers(limits)
    wanted = {*ACCOUNTED, *(_OLD_NAMES.get(name, name) for name in asked)}
    # Pausing and processor time are the version 2 hierarchy's business, if there is one.
    if any(hierarchy.version == 2 for hierarchy in host.hierarchies):
        wanted.discard("cpuacct")
    else:
        wanted.add("freezer")
    unified, top = None, ""
    offered: tuple[str, ...] = ()
    legacy, cpusets = [], []
    for hierarchy in host.hierarchies:
        path = f"{hierarchy.top}/{hierarchy.parent}/"
        if hierarchy.version == 2:
            unified, top, offered = path, hierarchy.top, hierarchy.controllers
        elif not wanted.isdisjoint(hierarchy.controllers):
            legacy.append(path)
            if "cpuset" in hierarchy.controllers:
                cpusets.append(path)
    paths = (*((unified,) if unified else ()), *legacy)
    return CgroupPlan(
        unified,
        tuple(legacy),
        top,
        needed={c: flag for c, flag in asked.items() if c in offered},
        welcome=tuple(c for c in ACCOUNTED if c in offered),
        cpusets=tuple(cpusets),
        writes=plan_writes(paths, host, limits, asked),
    )


def plan_writes(
    paths: Iterable[str], host: HostFacts, limits: Limits, asked: dict[str, str] | None = None
) -> tuple[Write, ...]:
    """What to write in a container's directories ``paths`` for ``limits``.

    :param asked: only for these controllers, each with the option to name; default: all of them
    :raises LimitError: one of them cannot be enforced here
    """
    asked = _controllers(limits) if asked is None else asked
    if not asked:
        return ()
    from craterun.core.limit_files import contents

    places = served(paths, host)
    writes: list[Write] = []
    for controller, flag in asked.items():
        hierarchy = serving(controller, host)
        if hierarchy is None:
            raise LimitError(f"{flag} cannot be enforced: {why_unserved(controller, host)}")
        directory = places.get(controller)
        if directory is None:
            raise LimitError(
                f"{flag}: this container was started without any {controller} limit, and cgroup "
                "version 1 cannot add the controller to a running one; start it with a limit"
            )
        writes += (Write(directory, c) for c in contents(controller, hierarchy.version, limits))
    return tuple(writes)


def serving(controller: str, host: HostFacts) -> Hierarchy | None:
    """The hierarchy that serves ``controller``, as version 2 calls it; None if none does."""
    for hierarchy in host.hierarchies:
        if _name(controller, hierarchy) in hierarchy.controllers:
            return hierarchy
    return None


def served(paths: Iterable[str], host: HostFacts) -> dict[str, str]:
    """For each controller the one of a container's directories ``paths`` that serves it.

    Controllers have the names of version 2, but for cpuacct and freezer, which it has no need of.
    """
    new_names = {old: new for new, old in _OLD_NAMES.items()}
    found = {}
    for path in paths:
        for hierarchy in host.hierarchies:
            if path.startswith(f"{hierarchy.mountpoint}/"):
                for name in hierarchy.controllers:
                    found[new_names.get(name, name)] = path
    return found


def possible_paths(
    container_id: str, host: HostFacts, recorded: Iterable[str] = ()
) -> tuple[str, ...]:
    """Every directory that a container of this id may have, whatever was asked for.

    :param recorded: what its record says, which somebody may have edited: only what has the form of
        a container's cgroup in a hierarchy of this host is believed
    """
    paths = [f"{h.top}/{PARENT}/{container_id}" for h in host.hierarchies]
    for path in recorded:
        parts = path.split("/")
        ours = any(path.startswith(f"{h.mountpoint}/") for h in host.hierarchies)
        if ours and parts[-1] == container_id and ".." not in parts and path not in paths:
            paths.append(path)
    return tuple(paths)


def exec_parent(joined: CgroupPlan, host: HostFacts, container_id: str) -> str | None:
    """Which of the cgroups of a container that an exec joins gets a cgroup for the exec alone.

    The version 2 one, if it is the container's own; or else that of a version 1 controller which
    means the same in a child: one to freeze or to count, not one to weigh or to limit by itself.
    """
    if joined.unified is not None and container_id in joined.unified.split("/"):
        return joined.unified
    harmless = [h for h in host.hierarchies if _WEIGHING.isdisjoint(h.controllers)]
    places = served(joined.legacy, msgspec.structs.replace(host, hierarchies=tuple(harmless)))
    return places.get("freezer", places.get("pids"))


def why_unserved(controller: str, host: HostFacts) -> str:
    """Why no hierarchy serves ``controller``, and what to do about it."""
    if any(hierarchy.base for hierarchy in host.hierarchies):
        return (
            f"the {controller} controller was not delegated to this user; have systemd do it: "
            "Delegate=yes in a drop-in of user@.service"
        )
    if host.hierarchies:
        return (
            f"no cgroup hierarchy offers the {controller} controller here; boot without "
            f"cgroup_disable={_OLD_NAMES.get(controller, controller)}, or with a kernel that has it"
        )
    if host.user_namespace:
        return (
            "no cgroup is delegated to this user; run craterun as root, or as "
            "systemd-run --user --scope -p Delegate=yes craterun run …"
        )
    return "no cgroup hierarchy is mounted here that can be written to; craterun info tells more"


def _controllers(limits: Limits) -> dict[str, str]:
    if limits == _NOTHING:
        return {}
    from craterun.core.limit_files import limited

    return limited(limits)


def _name(controller: str, hierarchy: Hierarchy) -> str:
    return _OLD_NAMES.get(controller, controller) if hierarchy.version == 1 else controller
