"""Readers of a container's folder, and its removal while they are still reading.

A log may be removed (``--rm``) before somebody who follows it has opened its last file. So a reader
holds a lock on the folder for as long as it reads; whoever removes the container then does not
delete the folder but puts it aside, to ``<root>/.trash/<id>``, where the reader, who has it open,
reads on. The last reader deletes it, or, if that was killed, the next one who removes anything.
Nobody waits.

The lock is an open file description lock for reading (fcntl(2), Linux 3.15), which has nothing to
do with the supervisor's flock(2) on the same folder. It needs no file of its own and goes away with
its holder. Reader and remover see each other because each does first what the other looks at: the
reader locks, then looks for ``metadata.json``; the remover unlinks that, then looks for locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress

from craterun.core.units import is_id

TRASH = ".trash"
_FLOCK = struct.Struct("hhqqi0q")
_TRIES = 10


def hold(directory: int) -> bool:
    """Lock an open folder for reading; False where the filesystem has no such locks."""
    return _lock(directory, fcntl.F_RDLCK)


def release(directory: int) -> None:
    """Undo `hold`."""
    _lock(directory, fcntl.F_UNLCK)


def _lock(directory: int, kind: int) -> bool:
    try:
        fcntl.fcntl(directory, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return False
    return True


def is_held(directory: int) -> bool:
    """Whether somebody else reads in an open folder."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(directory, fcntl.F_OFD_GETLK, question)
    except OSError:
        return False
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def has_readers(path: str) -> bool:
    """Whether somebody reads in the folder at ``path``."""
    try:
        fd = _open(path)
    except OSError:
        return False
    try:
        return is_held(fd)
    finally:
        os.close(fd)


def put_aside(root: str, container_id: str) -> bool:
    """Move a folder to the trash; False if that is not possible."""
    trash = os.path.join(root, TRASH)
    for _ in range(_TRIES):
        try:
            os.makedirs(trash, 0o700, exist_ok=True)
            os.rename(os.path.join(root, container_id), os.path.join(trash, container_id))
        except FileNotFoundError:
            continue  # somebody has just removed the empty trash
        except OSError:
            return False
        return True
    return False


def discard_own(root: str, container_id: str, directory: int) -> None:
    """After `release`, if that folder is in the trash and nobody else reads it: delete it."""
    path = os.path.join(root, TRASH, container_id)
    with suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(directory)) and not is_held(directory):
            _remove_tree(path)
            os.rmdir(os.path.join(root, TRASH))


def sweep(root: str) -> None:
    """Delete what is in the trash and is not read any more."""
    trash = os.path.join(root, TRASH)
    try:
        names = os.listdir(trash)
    except OSError:
        return
    for name in names:
        path = os.path.join(trash, name)
        if is_id(name) and not has_readers(path):
            _remove_tree(path)
    with suppress(OSError):
        os.rmdir(trash)


def _remove_tree(path: str) -> None:
    import shutil  # a slow import (compression modules), needed by few commands

    shutil.rmtree(path, ignore_errors=True)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
