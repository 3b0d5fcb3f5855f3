"""Wait for changes in many directories at once (inotify(7))."""

from __future__ import annotations

import os
import struct

from craterun.linux import calls

_IN_MODIFY = 0x2
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_HEADER = struct.Struct("iIII")
_EVERYTHING = -1
_PAD = 16  # sizeof(struct inotify_event)


def written(watch: int, name: str) -> bytes:
    """What `FolderWatches.read` gives of one write to a file of that name.

    :param watch: what `FolderWatches.add` returned for its folder
    """
    text = name.encode() + b"\0"
    text += bytes(-len(text) % _PAD)
    return _HEADER.pack(watch, _IN_MODIFY, 0, len(text)) + text


class FolderWatches:
    """Tells of files that were made in directories, moved there, or written to there."""

    def __init__(self) -> None:
        """:raises OSError: EMFILE: /proc/sys/fs/inotify/max_user_instances"""
        self._fd = calls.inotify_init()

    def add(self, directory: int) -> int:
        """Watch an open directory, wherever it is moved. Returns what `take` calls it.

        :raises OSError: ENOSPC: /proc/sys/fs/inotify/max_user_watches
        """
        path = f"/proc/self/fd/{directory}".encode()
        return calls.inotify_add_watch(self._fd, path, _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE)

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._fd

    def take(self) -> set[int] | None:
        """The directories in which something has changed; None: there was too much to tell."""
        news = os.read(self._fd, 64 * 1024)
        changed = set()
        position = 0
        while position < len(news):
            watch, _, _, length = _HEADER.unpack_from(news, position)
            changed.add(watch)
            position += _HEADER.size + length
        return None if _EVERYTHING in changed else changed

    def read(self) -> bytes:
        """The same as the kernel tells it, to be compared with `written`."""
        return os.read(self._fd, 4096)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)
