"""Terminals and pseudoterminals (pty(7), ioctl_tty(2), termios(3))."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty

_TIOCGPTPEER = 0x5441
_SIZE = struct.Struct("HHHH")


def pack_size(rows: int, columns: int) -> bytes:
    """``struct winsize``; the sizes in pixels, which nobody fills in, are 0."""
    return _SIZE.pack(rows, columns, 0, 0)


def window_size(fd: int) -> tuple[int, int]:
    """(rows, columns) of the terminal ``fd``; zeros if it does not know. OSError: no terminal."""
    rows, columns, _, _ = _SIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_SIZE.size)))
    return rows, columns


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Of either side; if it is a new size, the foreground processes get SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, pack_size(rows, columns))


def open_peer(master: int) -> int:
    """Open the other side of ``master``, whatever mount namespace it is in (Linux 4.13).

    As long as anybody has it open, reading from the master does not end in EIO.
    """
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


class RawMode:
    """A terminal in raw mode, for as long as the block runs: what is typed arrives byte by byte.

    No terminal at all is left alone.
    """

    def __init__(self, fd: int, *, drain: bool = True) -> None:
        """:param drain: wait until all output has left, which it may not, stopped by Ctrl-S"""
        self._fd = fd
        self._when = termios.TCSADRAIN if drain else termios.TCSANOW
        self._saved: list[object] | None = None

    def __enter__(self) -> RawMode:
        if os.isatty(self._fd):
            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, self._when)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            try:
                # Not TCSADRAIN: with output stopped by Ctrl-S that would never return.
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)  # type: ignore[arg-type]
            except termios.error:
                return  # the terminal is gone
