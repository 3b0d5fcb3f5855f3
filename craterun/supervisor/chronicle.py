"""What is told of one container: its OOM kills on record, and its life in the journal.

The record is always written before the event, so that whoever is woken by the event finds it.
"""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from craterun.core.events import Event, EventType, event
from craterun.core.instants import nanoseconds
from craterun.core.life import ExitStatus, Record
from craterun.core.oom import OomCount, was_init_killed
from craterun.state.journal import Told, was_sent_signal

if TYPE_CHECKING:
    from craterun.supervisor.oom import OomWatch
    from craterun.supervisor.services import Services

COMMAND_CHARACTERS = 200


class Chronicle:
    """Writes one container's events. By the clerk only."""

    def __init__(self, services: Services, root: str, container_id: str, told: Told | None) -> None:
        """:param told: what a supervisor that died has written already"""
        self._services = services
        self._root = root
        self._id = container_id
        self._told = told

    def begin(self, record: Record) -> None:
        """Created and started: at once, since a start that fails leaves nothing, here neither."""
        started = record.started or record.created
        command = " ".join(record.command)[:COMMAND_CHARACTERS]
        self._tell(
            Event(
                nanoseconds(record.created),
                EventType.CREATED.value,
                record.id,
                record.name,
                {"rootfs": record.rootfs, "command": command},
            ),
            Event(
                nanoseconds(started),
                EventType.STARTED.value,
                record.id,
                record.name,
                {"pid": record.pid},
            ),
        )

    def oom(self, record: Record, limit: int | None, *, init_alive: bool) -> None:
        """More processes were killed, so that there are ``record.oom_kills`` now."""
        self._tell(
            event(
                EventType.OOM,
                record.id,
                record.name,
                kills=record.oom_kills,
                limit_bytes=limit,
                init_alive=init_alive,
            )
        )

    def restarted(self, record: Record, before: ExitStatus) -> None:
        """Another life has begun, and that is on record."""
        self._tell(
            event(
                EventType.RESTARTED,
                record.id,
                record.name,
                pid=record.pid,
                restarts=record.restarts,
                exit_code=before.exit_code,
                signal=before.signal,
            )
        )

    def exited(self, record: Record) -> None:
        """It has ended, and that is on record."""
        self._tell(
            event(
                EventType.EXITED,
                record.id,
                record.name,
                exit_code=record.exit_code,
                signal=record.signal,
                oom_kills=record.oom_kills,
                init_oom_killed=record.init_oom_killed,
            )
        )

    def removed(self, record: Record) -> None:
        """Nothing of it is left."""
        self._tell(event(EventType.REMOVED, record.id, record.name))

    def judge(self, status: ExitStatus, count: OomCount, *, sigkilled: bool) -> bool | None:
        """Whether the first process was a victim (`core.oom.was_init_killed`).

        :param sigkilled: this supervisor has sent SIGKILL
        """
        known = status.exit_code is not None
        verdict = was_init_killed(status.signal, count, other_sigkill=sigkilled, status_known=known)
        # The journal is read only when a container would be called killed for want of memory.
        if verdict and was_sent_signal(self._root, self._id, signal.SIGKILL):
            return None
        return verdict

    def _tell(self, *events: Event) -> None:
        told = self._told
        news = [what for what in events if told is None or not told.has(what)]
        if news:
            self._services.journal(self._root).append(*news)


def with_oom(record: Record, watch: OomWatch) -> Record:
    """``record`` of a running container, with the kills that ``watch`` has counted.

    Until it has ended, "its first process was not the victim" is said of kills that are cleared,
    and nothing is said of others: a successor of this supervisor can rely on it.
    """
    if watch.count.kills == record.oom_kills:
        return msgspec.structs.replace(
            record, init_oom_killed=False if watch.init_alive else record.init_oom_killed
        )
    now = datetime.now(UTC)
    return msgspec.structs.replace(
        record,
        oom_kills=watch.count.kills,
        oom_first=(record.oom_first or now) if watch.count.kills else None,
        oom_last=now if watch.count.kills else None,
        init_oom_killed=False if watch.init_alive else None,
    )
