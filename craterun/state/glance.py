"""A short look at metadata.json: what lists show of a container, without importing msgspec.

Only a record that is plain is read here: exactly the fields that this version writes, each with a
value that is certainly valid. Of everything else (damage, another version's fields, limits that
were updated) `state.records` tells what it is; whatever is accepted here, it accepts as well, which
the tests compare.
"""

from __future__ import annotations

import os
import stat
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from craterun.core.states import Process, State

if TYPE_CHECKING:
    from craterun.core.life import Record

METADATA = "metadata.json"
LIMITS = "limits.json"
_FORMAT = 1
_MAX_BYTES = 1024 * 1024
_MAX_INT = 1 << 53
_MOMENTS = ("0000-00-00T00:00:00.000000Z", "0000-00-00T00:00:00Z")
_DIGITS = str.maketrans("123456789", "000000000")

_text = (str,)
_optional_text = (str, type(None))
_count = (int,)
_optional_count = (int, type(None))
_seconds = (int, float)
_optional_seconds = (int, float, type(None))
_flag = (bool,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": _count,
    "id": _text,
    "name": _optional_text,
    "status": _text,
    "rootfs": _text,
    "command": (list,),
    "env": (dict,),
    "workdir": _text,
    "user": _optional_text,
    "hostname": _text,
    "interactive": _flag,
    "terminal": _flag,
    "init": _flag,
    "auto_remove": _flag,
    "created": _text,
    "started": _optional_text,
    "finished": _optional_text,
    "pid": _optional_count,
    "start_time": _optional_count,
    "boot_id": _optional_text,
    "exit_code": _optional_count,
    "signal": _optional_count,
    "oom_kills": _optional_count,
    "oom_first": _optional_text,
    "oom_last": _optional_text,
    "init_oom_killed": (bool, type(None)),
    "limits": (dict,),
    "memory_peak_bytes": _optional_count,
    "cpu_seconds": _optional_seconds,
    "oom_score_adj": _optional_count,
    "timeout": _optional_seconds,
    "timed_out": _flag,
    "stop_signal": _count,
    "stop_seconds": _seconds,
    "restart": (dict,),
    "restarts": _count,
    "cgroups": (list,),
    "log": (dict,),
    "phases_us": (dict, type(None)),
    "error": _optional_text,
}
"""What each field may be, by the very type: True is no number here."""
_INSTANTS = ("created", "started", "finished", "oom_first", "oom_last")
_LOG: dict[str, tuple[type, ...]] = {"driver": _text, "max_bytes": _count, "max_files": _count}
_PHASES = (
    "queue", "prepare", "request", "clone", "setup", "exec", "run", "exit_notice", "drain",
    "conclude",
)  # fmt: skip
_RESTART = ({"condition"}, {"condition", "most"})


class Glance(NamedTuple):
    """Some fields of a `core.life.Record`."""

    id: str
    name: str | None
    status: State
    command: tuple[str, ...]
    created: datetime
    pid: int | None
    process: Process | None
    exit_code: int | None
    oom_kills: int | None
    init_oom_killed: bool | None
    restarts: int
    log_driver: str


def look(directory: str, container_id: str) -> Glance | Record:
    """What is to be seen of ``container_id`` in its ``directory``.

    :raises FileNotFoundError: there is no metadata.json
    :raises StateError: it is unreadable, not valid, of a newer format, or of another container
    """
    try:
        glance = None if _is_updated(directory) else plain(_content(directory))
    except OSError:
        glance = None  # found again, and told, below
    if glance is not None and glance.id == container_id:
        return glance
    from craterun.state.records import read_record

    return read_record(directory, container_id)


def _is_updated(directory: str) -> bool:
    """Whether limits.json overrides a part of the record."""
    return os.path.lexists(os.path.join(directory, LIMITS))


def _content(directory: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(os.path.join(directory, METADATA), flags)
    try:
        return os.read(fd, _MAX_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def plain(content: bytes) -> Glance | None:
    """What a file says, if it is plain."""
    import json  # for lists: a supervisor does without

    if b"\\u" in content and b"\\ud" in content.lower():
        return None  # half a surrogate pair is a string to Python
    try:
        fields = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None
    if type(fields) is not dict or fields.keys() != _FIELDS.keys():
        return None
    if not all(_is_valid(fields[name], types) for name, types in _FIELDS.items()):
        return None
    moments = [_moment(fields[name]) for name in _INSTANTS if fields[name] is not None]
    nested = _are_nested_plain(fields)
    if fields["format"] != _FORMAT or None in moments or moments[0] is None or not nested:
        return None
    if fields["status"] not in set(State):
        return None
    names = (fields["pid"], fields["start_time"], fields["boot_id"])
    return Glance(
        id=fields["id"],
        name=fields["name"],
        status=State(fields["status"]),
        command=tuple(fields["command"]),
        created=moments[0],
        pid=fields["pid"],
        process=None if None in names else Process(*names),
        exit_code=fields["exit_code"],
        oom_kills=fields["oom_kills"],
        init_oom_killed=fields["init_oom_killed"],
        restarts=fields["restarts"],
        log_driver=fields["log"]["driver"],
    )


def _is_valid(value: object, types: tuple[type, ...]) -> bool:
    kind = type(value)
    if kind not in types:
        return False
    if kind is int or kind is float:
        assert isinstance(value, (int, float))
        return -_MAX_INT < value < _MAX_INT  # which no NaN is
    return True


def _are_nested_plain(fields: dict[str, dict[str, object]]) -> bool:
    """Whether lists and dictionaries hold what they should."""
    log, restart, phases = fields["log"], fields["restart"], fields["phases_us"]
    return (
        all(type(word) is str for name in ("command", "cgroups") for word in fields[name])
        and all(type(text) is str for name in ("env", "limits") for text in fields[name].values())
        and log.keys() == _LOG.keys()
        and all(_is_valid(log[name], types) for name, types in _LOG.items())
        and log["driver"] in ("file", "none")
        and (not restart or _is_restart_plain(restart))
        and (phases is None or set(phases) <= set(_PHASES))
        and all(_is_valid(time, _optional_count) for time in (phases or {}).values())
    )


def _is_restart_plain(restart: dict[str, object]) -> bool:
    return (
        restart.keys() in _RESTART
        and restart["condition"] in ("no", "on-failure", "always")
        and _is_valid(restart.get("most"), _optional_count)
    )


def _moment(text: str) -> datetime | None:
    """A time as this version writes it."""
    if text.translate(_DIGITS) not in _MOMENTS or text[11:13] == "24":
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
