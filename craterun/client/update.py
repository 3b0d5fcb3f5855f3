"""Change the limits of a running container, all or nothing."""

from __future__ import annotations

import errno
import os
import time
from datetime import UTC, datetime

from msgspec.structs import replace

from craterun.client.local import running_process
from craterun.core.cgroups import Write, plan_writes, possible_paths
from craterun.core.errors import (
    ContainerNotRunningError,
    LimitError,
    StateError,
    UsageError,
)
from craterun.core.events import Attribute, Event, EventType
from craterun.core.life import Record
from craterun.core.limit_files import limited
from craterun.core.limits import Limits, from_text
from craterun.core.spec import HostFacts
from craterun.linux import controllers, host
from craterun.linux.limits import change, resolve_devices
from craterun.state.journal import note
from craterun.state.limits import updating, write_limits
from craterun.state.store import Store

_GONE = (errno.ENOENT, errno.ENODEV)


def update(store: Store, text: str, changes: Limits) -> str:
    """Change the limits of the running container that ``text`` means. Returns its id.

    Limits that ``changes`` does not name stay. Either all are in force and on record afterwards, or
    none.

    :raises ContainerNotRunningError: it has ended; limits bind processes
    :raises LimitError: one cannot be enforced, or not without killing
    :raises UsageError: they contradict those that the container has
    """
    facts = host.probe()
    record, _ = running_process(store, text)
    not_running = ContainerNotRunningError(f"container {record.id} is not running")
    try:
        with updating(store.path(record.id)) as folder:
            record, _ = running_process(store, record.id)  # with what others have just updated
            before = _recorded(record)
            after = before.merged(changes)
            after.check()
            writes = _writes(record, facts, after, changes)
            undo = change(writes)
            try:
                write_limits(folder, after.as_text(), datetime.now(UTC))
            except OSError as error:
                undo()
                if error.errno in _GONE:
                    raise
                raise StateError(
                    f"the limits of container {record.id} were not changed, since that could not "
                    f"be recorded: {os.strerror(error.errno or 0)}"
                ) from error
    except OSError as error:
        if error.errno in _GONE:
            raise not_running from None
        raise
    changed: dict[str, Attribute] = {**changes.as_text()}
    note(store.root, Event(time.time_ns(), EventType.UPDATED, record.id, record.name, changed))
    return record.id


def _recorded(record: Record) -> Limits:
    try:
        return from_text(record.limits)
    except UsageError as error:
        raise StateError(
            f"container {record.id} has limits on record that make no sense ({error})"
        ) from None


def _writes(record: Record, facts: HostFacts, after: Limits, changes: Limits) -> list[Write]:
    """What to write: everything of those controllers that are concerned."""
    paths = [p for p in possible_paths(record.id, facts, record.cgroups) if p in record.cgroups]
    if not paths:
        raise LimitError(
            f"container {record.id} has no cgroup that this process may use; it was started "
            "without root, or in a cgroup that was delegated to somebody else"
        )
    asked = limited(changes)
    # Devices that are not to be changed may be gone by now, and are left as they are.
    devices = resolve_devices(changes).io_max
    writes = plan_writes(paths, facts, replace(after, io_max=devices), asked)
    for hierarchy in facts.hierarchies:
        if hierarchy.version == 2:
            needed = {name: flag for name, flag in asked.items() if name in hierarchy.controllers}
            for path in paths:
                if path.startswith(f"{hierarchy.top}/"):
                    controllers.enable(path, hierarchy.top, needed, ())
    return list(writes)
