"""Containers of a batch that was killed: they go on under a successor, and their end is awaited."""

from __future__ import annotations

import os
from contextlib import suppress

from craterun.client import local
from craterun.core.errors import CraterunError, NoSuchContainerError, StateError
from craterun.core.life import Record, State
from craterun.state.loghead import Head
from craterun.state.logindex import FILES, INDEX, Stream, finished_serials, numbered, read_marks
from craterun.state.store import Store

_READ_BYTES = 1024 * 1024


def exists(store: Store, container_id: str) -> bool:
    """Whether a container of this id was begun."""
    return os.path.lexists(store.path(container_id))


def outcome_of(store: Store, container_id: str, *, wait: bool) -> Record | None:
    """The final record of an earlier container, or None if the job has to be run again. Then
    nothing of that container is left. Blocks; call it in a thread.

    :param wait: whether its end counts. Otherwise it is killed, if it still runs
    :raises CraterunError: it does not go away
    """
    if wait:
        store.wait_unsupervised(container_id)
        with suppress(StateError, NoSuchContainerError):
            record = store.load(container_id)
            if record.status is State.STOPPED and record.exit_code is not None:
                return record
    remove(store, container_id)
    return None


def remove(store: Store, container_id: str, name: str | None = None) -> None:
    """Remove it, running or not; nothing if it is gone.

    :param name: only if this is its name
    :raises CraterunError: it cannot be removed
    """
    with suppress(NoSuchContainerError):
        if name is None or store.load(container_id).name == name:
            local.remove(store, container_id, force=True)


def ask_to_end(store: Store, container_id: str) -> None:
    """As `craterun stop` does. Blocks until it has ended."""
    local.stop(store, [container_id])


def kill(store: Store, container_id: str) -> None:
    """SIGKILL; nothing if it is over. Blocks until it has ended."""
    with suppress(CraterunError):
        local.kill_and_wait(store, store.load(container_id))


def read_head(store: Store, record: Record, limit: int) -> Head | None:
    """The beginning of the output of a container that has ended, as far as the log still has it;
    None if it has none, or one that cannot be read.
    """
    if record.log.driver == "none":
        return None
    head = Head(limit)
    try:
        directory = os.open(
            store.path(record.id), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            serials = finished_serials(directory)
            first = numbered(INDEX, serials[0]) if serials else INDEX
            bases = _bases(directory, first)
            for stream in Stream:
                names = [numbered(FILES[stream], serial) for serial in serials]
                head.totals[stream] = bases[stream]
                for name in (*names, FILES[stream]):
                    _add(head, stream, directory, name)
        finally:
            os.close(directory)
    except OSError:
        return None
    return head


def _bases(directory: int, index: str) -> dict[Stream, int]:
    """How much of each stream came before the oldest segment that is kept."""
    marks = None
    with suppress(FileNotFoundError):
        fd = os.open(index, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            marks = read_marks(fd)
        finally:
            os.close(fd)
    return marks[1] if marks else dict.fromkeys(Stream, 0)


def _add(head: Head, stream: Stream, directory: int, name: str) -> None:
    """The next file of a stream."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return  # nothing was written to this stream in this segment
    try:
        size, wanted = os.fstat(fd).st_size, head.limit - head.totals[stream]
        if wanted > 0:
            head.kept[stream] += os.pread(fd, min(wanted, size), 0)
        head.totals[stream] += size
    finally:
        os.close(fd)
