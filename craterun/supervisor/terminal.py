"""The terminal of a process, seen from its master side."""

from __future__ import annotations

import os

from craterun.linux.fd import Fd
from craterun.linux.terminal import open_peer, set_window_size


class Terminal:
    """Keeps the other side open until `close`.

    Without that, the output would seem to end whenever nobody inside has the terminal open for a
    moment, as a daemon that closes its streams and opens /dev/tty later.
    """

    def __init__(self, master: Fd) -> None:
        """Borrows ``master``, which may be closed: the process was killed before it had one."""
        self._master = master
        self._peer = Fd(-1 if master.closed else open_peer(master.fileno()))

    def input(self) -> Fd:
        """A descriptor of its own for whoever types; the caller owns it."""
        return Fd(-1 if self._master.closed else os.dup(self._master.fileno()))

    def resize(self, rows: int, columns: int) -> None:
        """Set the window's size; the kernel sends SIGWINCH inside."""
        if not self._master.closed:
            set_window_size(self._master.fileno(), rows, columns)

    def close(self) -> None:
        """The process has ended: let the output end, too."""
        self._peer.close()
