"""Pause containers and let them go on, by freezing their cgroups.

Whether a container is paused is written nowhere: the record has one writer, its supervisor, and the
kernel knows better. So a supervisor that dies, and the one that takes over, leave it as it is.
"""

from __future__ import annotations

import os
from contextlib import suppress

from craterun.client.observing import hierarchies, placed
from craterun.core.errors import (
    ContainerNotPausedError,
    ContainerNotRunningError,
    ContainerPausedError,
    CraterunError,
    KernelRefusedError,
    UnsupportedHostError,
)
from craterun.core.life import Record
from craterun.linux import cgroup, freezer
from craterun.linux.freezer import Freezer
from craterun.linux.proc import parse_state

FREEZE_SECONDS = 10.0
"""How long the processes of a container may take to stop, or to go on."""


def pause(record: Record) -> None:
    """Stop all processes of a running container; returns when the last one has stopped.

    :raises ContainerPausedError: it is paused already
    :raises ContainerNotRunningError: it has just ended
    :raises UnsupportedHostError: the host cannot freeze it
    :raises CraterunError: a process does not stop; all are running again
    """
    found = _freezer(record)
    try:
        if found.is_frozen():
            above = "" if found.state().asked else f", through {os.path.dirname(found.path)}"
            raise ContainerPausedError(f"container {record.id} is already paused{above}")
        found.freeze(FREEZE_SECONDS)
    except FileNotFoundError:
        raise ContainerNotRunningError(f"container {record.id} is not running") from None
    except TimeoutError:
        raise CraterunError(
            f"cannot pause container {record.id}: {_culprit(found.path)} did not stop within "
            f"{FREEZE_SECONDS:g} s; the container goes on"
        ) from None
    except OSError as error:
        raise _refused("pause", record, found, error) from error


def unpause(record: Record) -> None:
    """Let the processes of a paused container go on.

    :raises ContainerNotPausedError: it is not paused
    :raises ContainerNotRunningError: it has just ended
    :raises UnsupportedHostError: the host cannot freeze it, so it cannot be paused either
    :raises CraterunError: it stays paused
    """
    found = _freezer(record)
    try:
        if not any(found.state()):
            raise ContainerNotPausedError(f"container {record.id} is not paused")
        above = found.frozen_from_above()
        found.thaw(FREEZE_SECONDS)
    except FileNotFoundError:
        raise ContainerNotRunningError(f"container {record.id} is not running") from None
    except TimeoutError:
        raise CraterunError(
            f"container {record.id} was told to go on, but is still paused after "
            f"{FREEZE_SECONDS:g} s"
        ) from None
    except OSError as error:
        raise _refused("unpause", record, found, error) from error
    if above:
        raise CraterunError(
            f"container {record.id} stays paused: the cgroup above it, "
            f"{os.path.dirname(found.path)}, is frozen; thaw that"
        )


def wake(record: Record) -> bool:
    """Let a container go on if it is paused, so that it can handle a signal; whether it was.

    Never fails: what stays paused does not end in time, and is killed.
    """
    try:
        unpause(record)
    except CraterunError:
        return False
    return True


def let_die(record: Record) -> None:
    """After SIGKILL: a version 1 freezer would hold back even a killed process."""
    freezer.release_killed(set(placed(record).legacy.values()))


def _freezer(record: Record) -> Freezer:
    found = freezer.find(placed(record))
    if found is not None:
        return found
    if not hierarchies():
        reason = (
            "no cgroup hierarchy that this user may write to is mounted, so containers have no "
            "cgroups; run craterun as root"
        )
    elif any(h.version == 2 or "freezer" in h.controllers for h in hierarchies()):
        reason = "it was started without a cgroup of its own in a hierarchy that can freeze"
    else:
        reason = (
            "this host has neither a cgroup v2 hierarchy nor the v1 freezer; mount one, and start "
            "the container anew"
        )
    raise UnsupportedHostError(f"container {record.id} cannot be paused: {reason}")


def _refused(what: str, record: Record, found: Freezer, error: OSError) -> KernelRefusedError:
    return KernelRefusedError(
        f"{what} container {record.id}", "write", found.path, error.errno or 0
    )


def _culprit(path: str) -> str:
    """The process that hangs in the kernel, where no freezer reaches it."""
    for directory, _, _ in os.walk(path):
        for pid in cgroup.processes(directory):
            with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
                if parse_state(file.read()) == "D":
                    return f"process {pid}, which waits in the kernel for a device or file server,"
    return "one of its processes"
