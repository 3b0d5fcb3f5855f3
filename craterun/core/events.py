"""Events in the lives of containers: what one is, how it is written, and which ones are wanted.

An event is stored as an element of a JSON text sequence (RFC 7464): a record separator, JSON
without line breaks, a line feed. The separator in front makes the sequence self-healing: whatever a
full disk or a killed writer left unfinished ends where the next element begins.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from craterun.core.errors import UsageError, printable
from craterun.core.instants import rfc3339

RECORD_SEPARATOR = b"\x1e"
_END = b"\n"

Attribute = str | int | float | bool | None


class EventType(StrEnum):
    """What can happen."""

    CREATED = "created"
    STARTED = "started"
    RESTARTED = "restarted"
    UPDATED = "updated"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    OOM = "oom"
    SIGNALED = "signaled"
    EXEC = "exec"
    EXEC_EXITED = "exec_exited"
    EXITED = "exited"
    REMOVED = "removed"
    EVENTS_LOST = "events_lost"


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to one container.

    :ivar time: nanoseconds since the epoch, by the clock of whoever did it
    :ivar type: an `EventType`, or one that a later version of craterun knows
    :ivar id: the container's id; empty for an event about the journal itself
    :ivar name: the container's name, or None
    :ivar attributes: whatever else there is to know; docs/events.md has the list
    """

    time: int
    type: str
    id: str
    name: str | None = None
    attributes: dict[str, Attribute] = {}

    def text(self, key: str) -> str | None:
        """The value of ``key`` as people write it, or None if there is none."""
        if key in ("type", "id", "name"):
            field: str | None = getattr(self, key)
            return field
        if key not in self.attributes:
            return None
        value = self.attributes[key]
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        return str(value)

    def json_line(self) -> bytes:
        """One line for programs: all fields, and ``time`` in both forms."""
        fields = {
            "time": rfc3339(self.time),
            "time_ns": self.time,
            "type": self.type,
            "id": self.id,
            "name": self.name,
            "attributes": self.attributes,
        }
        return _encoder.encode(fields) + _END

    def line(self) -> str:
        """One line for people."""
        words = [f"{printable(key)}={self._shown(key)}" for key in self.attributes]
        head = (rfc3339(self.time), f"{printable(self.type):<10}", printable(self.id) or "-")
        name = [printable(self.name)] if self.name else []
        return "  ".join((*head, *name, *([" ".join(words)] if words else [])))

    def _shown(self, key: str) -> str:
        text = printable(self.text(key) or "")
        return repr(text) if " " in text or not text else text


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def event(
    kind: EventType, container_id: str, name: str | None = None, **attributes: Attribute
) -> Event:
    """An event that happens now."""
    return Event(time.time_ns(), kind.value, container_id, name, attributes)


def encode_event(what: Event) -> bytes:
    """The element of the sequence."""
    return RECORD_SEPARATOR + _encoder.encode(what) + _END


def decode_event(element: bytes) -> Event | None:
    """From what stands between two separators; None if it is torn or foreign."""
    content, end, _ = element.partition(_END)
    if not end:
        return None
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Filter:
    """Which events are wanted: ``KEY=VALUE``, several of one key meaning any of them.

    ``type``, ``id`` (any prefix), ``name``, ``container`` (an id, a prefix of one, or a name), or
    any attribute.
    """

    def __init__(self, conditions: Iterable[str] = ()) -> None:
        """:raises UsageError: a condition is malformed, or its type of event does not exist"""
        self._wanted: dict[str, set[str]] = {}
        for condition in conditions:
            key, equals, value = condition.partition("=")
            if not equals or not key or not value:
                raise UsageError(
                    f"invalid filter '{printable(condition)}': write KEY=VALUE, as in type=oom"
                )
            if key == "type" and value not in list(EventType):
                raise UsageError(
                    f"there are no events of type '{printable(value)}'; "
                    f"types are {', '.join(EventType)}"
                )
            self._wanted.setdefault(key, set()).add(value)

    def wants(self, what: Event) -> bool:
        """Whether ``what`` meets a condition of each key. News of lost events always does."""
        if what.type == EventType.EVENTS_LOST:
            return True
        return all(self._meets(what, key, values) for key, values in self._wanted.items())

    @staticmethod
    def _meets(what: Event, key: str, values: set[str]) -> bool:
        if key in ("id", "container") and any(what.id.startswith(value) for value in values):
            return True
        if key == "container":
            return what.name in values
        return what.text(key) in values
