"""Wait for changes in a directory (inotify(7))."""

from __future__ import annotations

import os
import select

from craterun.linux import calls

_IN_MOVED_TO = 0x80
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400


class DirectoryWatch:
    """Tells of files that were moved into a directory or removed from it, from its making on."""

    def __init__(self, path: str) -> None:
        """:raises FileNotFoundError: there is no such directory"""
        self._fd = calls.inotify_init()
        try:
            calls.inotify_add_watch(
                self._fd, os.fsencode(path), _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF
            )
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

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def __enter__(self) -> DirectoryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
