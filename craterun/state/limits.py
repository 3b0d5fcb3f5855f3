"""limits.json: the limits of a container after an update, beside its record.

metadata.json has one writer, the supervisor, which may write it at any moment and knows nothing of
updates. So whoever updates writes this file, by rename, while holding a lock that serialises
updates; and whoever reads a record reads this, too, and believes it where the two differ.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import msgspec

from craterun.core.errors import StateError, printable
from craterun.core.life import Instant
from craterun.state.glance import LIMITS

_TEMPORARY = ".limits.json.new"
_LOCK = ".limits.lock"
_MAX_BYTES = 1024 * 1024


class UpdatedLimits(msgspec.Struct, frozen=True):
    """The file.

    :ivar limits: all limits in force, as `Record.limits` has them
    :ivar updated: when they were last changed
    """

    limits: dict[str, str]
    updated: Instant


_decoder = msgspec.json.Decoder(UpdatedLimits)


def read_limits(directory: str) -> UpdatedLimits | None:
    """The limits after the last update, or None if there was none.

    :raises StateError: the file is damaged
    """
    path = os.path.join(directory, LIMITS)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{printable(path)}: {os.strerror(error.errno or 0)}") from error
    try:
        return _decoder.decode(os.read(fd, _MAX_BYTES))
    except OSError as error:
        raise StateError(f"{printable(path)}: {os.strerror(error.errno or 0)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(
            f"{printable(path)} is damaged ({printable(str(error))}); remove that file to see the "
            "limits that the container was started with"
        ) from error
    finally:
        os.close(fd)


@contextmanager
def updating(directory: str) -> Iterator[int]:
    """Be the only one that updates this container. Yields a descriptor of its folder.

    :raises FileNotFoundError: the container has been removed
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(_LOCK, flags, 0o600, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def write_limits(folder: int, limits: dict[str, str], updated: datetime) -> None:
    """Replace limits.json in the folder that `updating` gave.

    :raises OSError: disk full, or the container has been removed
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=folder)
    try:
        content = msgspec.json.encode(UpdatedLimits(limits, updated))
        content = msgspec.json.format(content, indent=2) + b"\n"
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
    os.rename(_TEMPORARY, LIMITS, src_dir_fd=folder, dst_dir_fd=folder)
