"""Wait for changes in a directory (inotify(7))."""

from __future__ import annotations

import os
import select
import struct

from craterun.linux import calls

_IN_MODIFY = 0x2
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_IGNORED = 0x8000
_HEADER = struct.Struct("iIII")


class DirectoryWatch:
    """Tells of files that were moved into a directory or removed from it, from its making on.

    :param contents: tell also of files that are made there, and written to
    :param name: tell also when the directory above loses an entry, which may be this one. Of the
        directory itself the kernel says only that it is gone, and not before the last of its files
        that is open anywhere is closed.
    :raises FileNotFoundError: there is no such directory
    """

    def __init__(self, path: str, *, contents: bool = False, name: bool = False) -> None:
        mask = _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF
        if contents:
            mask |= _IN_CREATE | _IN_MODIFY
        self._fd = calls.inotify_init()
        try:
            self._watch = calls.inotify_add_watch(self._fd, os.fsencode(path), mask)
            if name:
                above = os.fsencode(os.path.dirname(path))
                calls.inotify_add_watch(self._fd, above, _IN_DELETE | _IN_MOVED_FROM)
        except OSError:
            os.close(self._fd)
            raise

    def wait(self, seconds: float) -> bool:
        """Until something changed; False after ``seconds`` without."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        changed = bool(poll.poll(seconds * 1000))
        if changed:
            os.read(self._fd, 64 * 1024)
        return changed

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._fd

    def take(self) -> bool:
        """Take the news, of which there must be some; False: the directory itself was removed."""
        news = os.read(self._fd, 64 * 1024)
        position = 0
        while position < len(news):
            watch, mask, _, length = _HEADER.unpack_from(news, position)
            if watch == self._watch and mask & _IN_IGNORED:
                return False
            position += _HEADER.size + length
        return True

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def __enter__(self) -> DirectoryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
