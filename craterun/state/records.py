"""metadata.json: written by rename, readable at any instant, never trusted to be well-formed."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

import msgspec

from craterun.core.errors import StateError, printable
from craterun.core.life import FORMAT, Record
from craterun.state.glance import METADATA
from craterun.state.limits import read_limits

_TEMPORARY = ".metadata.json.new"
FILE_NAMES = (METADATA, _TEMPORARY)
"""Every file of a container's folder that this module makes."""
_MAX_BYTES = 64 * 1024 * 1024
"""More than any record has: execve(2) takes 6 MiB at most, and six characters stand for a byte."""
_REMEDY = "; remove the container with: craterun rm --force "


class _Head(msgspec.Struct):
    format: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The file's content: indented JSON with a final newline."""
    return msgspec.json.format(_encoder.encode(record), indent=2) + b"\n"


def write_record(directory: int, record: Record) -> None:
    """Replace metadata.json in the directory that ``directory`` is a descriptor of.

    There is one writer for each container (the holder of its lock), so one temporary name is
    enough, and a crash leaves at most one. No fsync: after a power loss the processes that the
    record speaks of are gone too, and rename orders the content before the name on every
    filesystem that people keep state on.

    :raises OSError: disk full, read-only, …
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=directory)
    try:
        content = encode_record(record)
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
    os.rename(_TEMPORARY, METADATA, src_dir_fd=directory, dst_dir_fd=directory)


def overwrite_record(directory: int, record: Record) -> None:
    """Replace the content of metadata.json in place, for when the disk has no room for a new file.

    The blocks that the file has suffice, if need be for a record without indentation or without
    its ``error``. A reader at this very moment may see a torn record, and reports it as damaged;
    the alternative is to lose the exit code.

    :raises OSError: not even that was possible; the old record is still there
    """
    fd = os.open(METADATA, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        old = os.pread(fd, _MAX_BYTES, 0)
        brief = msgspec.structs.replace(record, error=None)
        forms = (encode_record(record), _encoder.encode(record), _encoder.encode(brief))
        if not any(_overwrite(fd, content) for content in forms):
            _overwrite(fd, old)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), METADATA)
    finally:
        os.close(fd)
    with suppress(FileNotFoundError):
        os.unlink(_TEMPORARY, dir_fd=directory)


def _overwrite(fd: int, content: bytes) -> bool:
    """Whether ``content`` could be written from the start of the file; then it is all of it."""
    try:
        if os.pwrite(fd, content, 0) < len(content):
            return False
        os.ftruncate(fd, len(content))
    except OSError:
        return False
    return True


def read_record(directory: str, container_id: str) -> Record:
    """The record of ``container_id`` in its ``directory``, with its limits as last updated.

    :raises FileNotFoundError: there is no metadata.json
    :raises StateError: it is unreadable, not valid, of a newer format, or of another container
    """
    path = os.path.join(directory, METADATA)
    try:
        # O_NONBLOCK: a foreign FIFO of this name must not block `ps`.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StateError(f"{printable(path)} is not a regular file{_REMEDY}{container_id}")
            content = os.read(fd, min(status.st_size, _MAX_BYTES))
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{printable(path)}: {os.strerror(error.errno or 0)}") from error
    try:
        # First, so that fields of a later format are not called damage.
        if msgspec.json.decode(content, type=_Head).format > FORMAT:
            raise StateError(f"{printable(path)} was written by a newer craterun")
        record = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(
            f"{printable(path)} is damaged ({printable(str(error))}){_REMEDY}{container_id}"
        ) from error
    if record.id != container_id:
        raise StateError(f"{printable(path)} belongs to another container, {printable(record.id)}")
    updated = read_limits(directory)
    return record if updated is None else msgspec.structs.replace(record, limits=updated.limits)
