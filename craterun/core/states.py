"""A container's states, and how its first process is named: what a short look at it needs."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """The OCI runtime-spec's states, with ``paused`` and ``restarting`` (between two
    lives) as docker has them.
    """

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Process(NamedTuple):
    """One process, named so that a reused pid is told apart.

    :ivar pid: in the host's pid namespace
    :ivar start_time: field 22 of /proc/PID/stat, clock ticks since boot
    :ivar boot_id: /proc/sys/kernel/random/boot_id of the boot it ran in
    """

    pid: int
    start_time: int
    boot_id: str
