"""A container's folder as its supervisor writes it; all of this by the clerk, in order."""

from __future__ import annotations

import errno
import os

from craterun.core.life import ExitStatus, Record, State
from craterun.linux.fd import Fd
from craterun.state.records import overwrite_record, write_record
from craterun.state.removed import remove_ended
from craterun.state.store import Store
from craterun.supervisor.chronicle import Chronicle

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Folder:
    """One folder, locked by the descriptor that this has."""

    def __init__(self, store: Store, directory: Fd, chronicle: Chronicle) -> None:
        """Takes ownership of ``directory``.

        :param chronicle: is told of the end, when it can be read, and of the removal
        """
        self._store = store
        self._directory = directory
        self._chronicle = chronicle
        self._written: Record | None = None

    def fileno(self) -> int:
        """The folder's descriptor."""
        return self._directory.fileno()

    def close(self) -> None:
        """Our part in its lock is over."""
        self._directory.close()

    def opened(self, container_id: str) -> Fd:
        """The same folder once more, of a container that has ended.

        :raises OSError: it was removed
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return Fd(os.open(self._store.path(container_id), flags))

    def update(self, record: Record) -> None:
        """Bring metadata.json up to date, unless that is for `conclude`.

        :raises OSError: it is as it was
        """
        if self._written is record or record.status is State.STOPPED:
            return
        self._written = record
        write_record(self.fileno(), record)

    def conclude(self, record: Record, status: ExitStatus) -> None:
        """The final record: written, or removed with everything else.

        :raises Exception: metadata.json is as it was
        """
        if record.auto_remove:
            self._chronicle.exited(record)
            self.remove(record, status)
            return
        try:
            write_record(self.fileno(), record)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            overwrite_record(self.fileno(), record)
        self._chronicle.exited(record)

    def remove(self, record: Record, status: ExitStatus) -> None:
        """Remove everything, in this order: who waits in another process finds how it has ended.

        :raises StateError: something cannot be removed
        """
        remove_ended(self._store, record, status)
        self._chronicle.removed(record)
