"""A container's record compared with reality: all that a list needs, and no more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from craterun.core.errors import CraterunError
from craterun.core.hierarchy import Hierarchy
from craterun.core.states import State
from craterun.linux import freezer
from craterun.linux.hierarchies import hierarchies as usable
from craterun.linux.hierarchies import mount_table
from craterun.linux.placement import Placement, locate
from craterun.linux.proc import is_alive
from craterun.state.store import Store

if TYPE_CHECKING:
    from craterun.core.life import Record
    from craterun.state.glance import Glance

R = TypeVar("R", bound="Record | Glance")


class Observation(NamedTuple, Generic[R]):
    """A record, or what was seen of it, compared with reality.

    :ivar lost: it says created or running, but nobody supervises it and its process is gone:
        supervisor and keeper were killed, or the machine restarted
    :ivar paused: its processes are stopped; the kernel is asked, since the record belongs to the
        supervisor, and whoever pauses is another process
    """

    record: R
    lost: bool
    paused: bool = False

    @property
    def running(self) -> bool:
        """Whether its first process is alive, or about to be; a paused one is."""
        return not self.lost and self.record.status is not State.STOPPED

    @property
    def status(self) -> str:
        """As `ps` shows it: ``running``, ``stopped (0)``, ``oom``, ``paused``, ``lost``, …"""
        record = self.record
        again = f", restarted {record.restarts}x" if record.restarts else ""
        if self.lost:
            return "lost"
        if record.status is not State.STOPPED:
            return str(State.PAUSED if self.paused else record.status) + again
        if record.init_oom_killed:
            return f"oom{again}"
        return f"stopped ({'?' if record.exit_code is None else record.exit_code}){again}"


def observe(store: Store, record: R, load: Callable[[str], R]) -> Observation[R]:
    """Compare ``record`` with the processes that exist.

    :param load: reads it once more
    """
    if record.status is State.STOPPED:
        return Observation(record, lost=False)
    if record.process is not None and is_alive(record.process):
        return Observation(record, lost=False, paused=is_paused(record))
    if store.is_locked(record.id):
        # Not started yet, or ended and about to be recorded: for a moment, the record is right.
        return Observation(record, lost=False)
    try:
        # The supervisor may have written the end between our reading and our look at the lock.
        record = load(record.id)
    except CraterunError:
        return Observation(record, lost=True)
    return Observation(record, lost=record.status is not State.STOPPED)


@cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """Read once, since a list of containers asks for each of them."""
    return usable(mount_table())


def placed(record: Record | Glance) -> Placement:
    """The cgroups of a container: from the kernel, not from its record, which is a file."""
    return locate(record.id, record.pid, hierarchies())


def is_paused(record: Record | Glance) -> bool:
    """Whether all processes of a running container are stopped."""
    return freezer.is_frozen(placed(record))
