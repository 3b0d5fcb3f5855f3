"""How containers that removed themselves (``--rm``) ended, for those who still wait for them.

A waiter learns of the end by the folder's lock; when it gets that, the folder and the record in it
are gone. So the last supervisor to leave writes one line here first. The file is bounded: at
`_MAX_BYTES` it becomes ``.removed.old`` and a new one begins.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from craterun.core.life import ExitStatus, Record

if TYPE_CHECKING:
    from craterun.state.store import Store

_FILE = ".removed"
_MAX_BYTES = 256 * 1024


class _Line(msgspec.Struct, frozen=True, array_like=True):
    id: str
    exit_code: int | None
    signal: int | None


def remove_ended(store: Store, record: Record, status: ExitStatus) -> None:
    """Remove all that there is of a container that has ended, in the order described above.

    :raises StateError: something cannot be removed
    """
    # On a full disk: a waiter in another process then learns of the end, but not which.
    with suppress(OSError):
        note_removed(store.root, record.id, status)
    store.remove(record)


def note_removed(root: str, container_id: str, status: ExitStatus) -> None:
    """Append one line; a single write in append mode is atomic among writers.

    :raises OSError: disk full, …
    """
    path = os.path.join(root, _FILE)
    line = msgspec.json.encode(_Line(container_id, status.exit_code, status.signal)) + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # the one before was cut short by a full disk
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _FILE)
        full = os.fstat(fd).st_size > _MAX_BYTES
    finally:
        os.close(fd)
    if full:
        os.replace(path, f"{path}.old")


def find_removed(root: str, container_id: str) -> ExitStatus | None:
    """How ``container_id`` ended, if it was noted."""
    for name in (_FILE, f"{_FILE}.old"):
        try:
            with open(os.path.join(root, name), "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            try:
                noted = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError:
                continue  # a line cut short by a full disk
            if noted.id == container_id:
                return ExitStatus(noted.exit_code, noted.signal)
    return None
