"""Whose standard streams, terminal and signals a command in the foreground uses.

Usually they are this process's own. A server runs many such commands in one process, each with the
streams of its client.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from craterun.cli.output import complain
from craterun.cli.signals import heeded
from craterun.cli.window import our_window


class Console(Protocol):
    """What a command in the foreground knows of its user.

    :ivar streams: descriptors for reading and writing: stdin, stdout, stderr; borrowed
    :ivar shared: other commands run in this process, so that it must not wait for these streams
    """

    streams: tuple[int, int, int]
    shared: bool

    def complain(self, message: str) -> None:
        """One line on stderr."""

    def say(self, line: str) -> None:
        """One line on stdout. If nobody can read it, that is no error."""

    def is_watched(self) -> bool:
        """Whether stderr is a terminal."""

    def window(self) -> tuple[int, int]:
        """(rows, columns) of the terminal."""

    def signals(self) -> AbstractContextManager[AsyncIterator[int]]:
        """Those that are to be forwarded, while the block runs."""

    def window_changes(self) -> AbstractContextManager[AsyncIterator[int]]:
        """Something comes when the window has another size, while the block runs."""


class OwnConsole:
    """This process's own."""

    streams = (0, 1, 2)
    shared = False

    def complain(self, message: str) -> None:
        """One line on stderr."""
        complain(message)

    def say(self, line: str) -> None:
        """One line on stdout."""
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError:
            return  # nobody there to read it is no reason to end the container

    def is_watched(self) -> bool:
        """Whether stderr is a terminal."""
        return sys.stderr.isatty()

    def window(self) -> tuple[int, int]:
        """(rows, columns) of the terminal."""
        return our_window()

    def signals(self) -> AbstractContextManager[AsyncIterator[int]]:
        """A signal receiver."""
        return trio.open_signal_receiver(*heeded())

    def window_changes(self) -> AbstractContextManager[AsyncIterator[int]]:
        """A signal receiver."""
        return trio.open_signal_receiver(signal.SIGWINCH)


OWN = OwnConsole()
