"""Where cgroups are: the hierarchies of a host."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Hierarchy(NamedTuple):
    """One mounted cgroup hierarchy (cgroups(7)).

    :ivar version: 1 or 2
    :ivar controllers: the controllers it serves; of version 2, those it offers to its children
    :ivar mountpoint: where it is mounted
    :ivar base: the cgroup that was delegated to us, as in ``/user.slice/x.scope``; "" for the whole
    :ivar parent: below it, what containers are put under
    """

    version: Literal[1, 2]
    controllers: tuple[str, ...]
    mountpoint: str
    base: str = ""
    parent: str = "craterun"

    @property
    def top(self) -> str:
        """The directory that is ours to make cgroups in."""
        return self.mountpoint + self.base
