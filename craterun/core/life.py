"""A container's life: its states, the order they come in, how it ended, and its record on disk."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from craterun.core.logoptions import LogOptions
from craterun.core.phases import Phases
from craterun.core.restart import RestartPolicy
from craterun.core.states import Process, State
from craterun.core.units import signal_name

__all__ = ["FORMAT", "ExitStatus", "Instant", "Process", "Record", "State", "may_follow"]

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time that says which time zone it is in."""

FORMAT = 1
"""Version of metadata.json; a reader refuses a higher one."""


_NEXT = {
    State.CREATED: {State.RUNNING, State.STOPPED},
    State.RUNNING: {State.PAUSED, State.RESTARTING, State.STOPPED},
    State.RESTARTING: {State.RUNNING, State.STOPPED},
    State.PAUSED: {State.RUNNING, State.STOPPED},
    State.STOPPED: set[State](),
}


def may_follow(before: State, after: State) -> bool:
    """Whether ``after`` is a legal step from ``before``."""
    return after in _NEXT[before]


class ExitStatus(msgspec.Struct, frozen=True):
    """How a container's first process ended.

    :ivar exit_code: what a shell would show: the code, or 128 + N when signal N killed it; None
        when nobody was there to see it
    :ivar signal: the signal that killed it, or None
    """

    exit_code: int | None
    signal: int | None = None

    @classmethod
    def from_siginfo(cls, code: int, status: int) -> ExitStatus:
        """From ``si_code`` and ``si_status`` of waitid(2)."""
        cld_exited = 1
        if code == cld_exited:
            return cls(status)
        return cls(128 + status, status)

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return "unknown exit code" if self.exit_code is None else f"exit code {self.exit_code}"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """metadata.json: all that is known of a container, for people and programs.

    Of a container that is started again when it has ended, ``started``, ``pid``, ``exit_code`` and
    ``signal`` are those of its last life. Times are RFC 3339 in UTC. ``limits`` is what was asked
    for, ``cgroups`` the directories that the container was put in, ``error`` whatever went wrong
    besides the command itself.

    :ivar oom_kills: processes that the kernel has killed for want of memory; None, once it has
        ended, if they could not be counted (`core.oom`)
    :ivar oom_first: when the first of these kills was noticed
    :ivar oom_last: when the last one was
    :ivar phases_us: how long each phase of its life took, in microseconds
    :ivar init_oom_killed: whether the first process was among them; None: nobody can tell
    :ivar restart: when it is started again
    :ivar restarts: how many times that was
    :ivar memory_peak_bytes: the most memory that was charged to it, cache included, once it has
        ended; None: this host does not tell (version 2 before Linux 5.19)
    :ivar cpu_seconds: processor time of all its processes, likewise
    """

    format: int = FORMAT
    id: str
    name: str | None
    status: State
    rootfs: str
    command: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    user: str | None
    hostname: str
    interactive: bool
    terminal: bool = False
    init: bool
    auto_remove: bool
    created: Instant
    started: Instant | None = None
    finished: Instant | None = None
    pid: int | None = None
    start_time: int | None = None
    boot_id: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom_kills: int | None = 0
    oom_first: Instant | None = None
    oom_last: Instant | None = None
    init_oom_killed: bool | None = False
    limits: dict[str, str] = {}
    memory_peak_bytes: int | None = None
    cpu_seconds: float | None = None
    oom_score_adj: int | None = None
    timeout: float | None = None
    timed_out: bool = False
    stop_signal: int = 15
    stop_seconds: float = 10.0
    restart: RestartPolicy = RestartPolicy()
    restarts: int = 0
    cgroups: tuple[str, ...] = ()
    log: LogOptions = LogOptions()
    phases_us: Phases | None = None
    error: str | None = None

    @property
    def process(self) -> Process | None:
        """The container's first process, if it ever had one."""
        if self.pid is None or self.start_time is None or self.boot_id is None:
            return None
        return Process(self.pid, self.start_time, self.boot_id)

    @property
    def log_driver(self) -> str:
        """How its output is kept, `core.logoptions.LogOptions.driver`."""
        return self.log.driver

    @property
    def short_id(self) -> str:
        """The first 12 digits, the default hostname."""
        return self.id[:12]
