"""Which cgroup directories a container gets: a pure function of the host's hierarchies."""

from __future__ import annotations

import msgspec

from craterun.core.spec import HostFacts

PARENT = "craterun"
"""Every container's cgroup lies below this one, in each hierarchy."""

ACCOUNTED = ("memory", "cpu", "cpuacct", "pids")
"""Version 1 hierarchies that a container always gets a directory in.

They serve limits and accounting. Killing needs none: the pid namespace ends as a whole with its
first process. Pausing needs the freezer only where there is no version 2 hierarchy, which freezes
without controllers.
"""


class CgroupPlan(msgspec.Struct, frozen=True):
    """Directories to make, parents first made by whoever makes them.

    :ivar unified: the version 2 directory, which the first process is born in, or None
    :ivar legacy: version 1 directories, which the first process moves itself into
    """

    unified: str | None
    legacy: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All directories."""
        return (*((self.unified,) if self.unified else ()), *self.legacy)


def plan_cgroups(container_id: str, host: HostFacts) -> CgroupPlan:
    """A directory in the version 2 hierarchy and in each version 1 one that accounts."""
    unified = None
    legacy = []
    wanted = {*ACCOUNTED}
    if all(hierarchy.version == 1 for hierarchy in host.hierarchies):
        wanted.add("freezer")
    for hierarchy in host.hierarchies:
        path = f"{hierarchy.mountpoint}/{PARENT}/{container_id}"
        if hierarchy.version == 2:
            unified = path
        elif not wanted.isdisjoint(hierarchy.controllers):
            legacy.append(path)
    return CgroupPlan(unified, tuple(legacy))
