"""A container's log, opened to be read whatever happens to the container meanwhile."""

from __future__ import annotations

import os

from craterun.core.errors import CraterunError, NoSuchContainerError, StateError
from craterun.state import readers
from craterun.state.glance import METADATA
from craterun.state.store import Store, is_supervised


class OpenLog:
    """A container's folder, kept from being deleted for as long as this is open.

    :ivar id: the container's
    :ivar directory: the folder's descriptor
    """

    def __init__(self, store: Store, text: str) -> None:
        """:param text: id, prefix or name
        :raises NoSuchContainerError: there is none
        :raises CraterunError: it keeps no log
        """
        self.id = store.resolve(text)
        self._store = store
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.directory = os.open(store.path(self.id), flags)
        except FileNotFoundError:
            raise self._removed() from None
        try:
            self._held = readers.hold(self.directory)
            # In this order: see state.readers. Not there: being removed, or damaged; the end tells.
            self._safe = self._held and self._has_record()
            self._check_driver()
        except BaseException:
            self.close()
            raise

    def _has_record(self) -> bool:
        try:
            os.stat(METADATA, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _check_driver(self) -> None:
        try:
            record = self._store.look(self.id)
        except (StateError, NoSuchContainerError):
            return  # the log may be there all the same
        if record.log_driver == "none":
            raise CraterunError(
                f"container {self.id} keeps no log (it was run with --log-driver none)"
            )

    def _removed(self) -> NoSuchContainerError:
        return NoSuchContainerError(f"container {self.id} was removed before its log could be read")

    def check_whole(self) -> None:
        """After reading: raise if the folder was being deleted meanwhile.

        :raises NoSuchContainerError: it was, so that what was read may lack something
        """
        if not self._safe and os.fstat(self.directory).st_nlink == 0:
            raise self._removed()

    def is_supervised(self) -> bool:
        """Whether anybody may still write to it."""
        return is_supervised(self.reopen())

    def reopen(self) -> int:
        """Another descriptor of the folder, for a lock of its own; the caller's."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory)

    def close(self) -> None:
        """Let go of it; if it was removed meanwhile and nobody else reads it, delete it."""
        if self.directory >= 0:
            readers.release(self.directory)
            readers.discard_own(self._store.root, self.id, self.directory)
            os.close(self.directory)
            self.directory = -1
