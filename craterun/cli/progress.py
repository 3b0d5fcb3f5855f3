"""What a person sees who waits for several containers, or for long: one line on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from craterun.cli.output import shorten
from craterun.cli.screen import can_draw, columns
from craterun.core.errors import printable

PATIENCE_SECONDS = 1.0
"""Nothing is shown before, and the seconds count down at this pace."""


class Progress:
    """A line on stderr while something is waited for, if that is a terminal; nothing otherwise.

    A context manager. The line is erased at the end, and for as long as `paused` runs, so that it
    never mixes with what is printed.
    """

    def __init__(self, doing: str) -> None:
        """:param doing: such as "stopping" """
        self._doing = doing
        self._names: Sequence[str] = ()
        self._deadline: float | None = None
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._drawn = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if can_draw(2):
            self._thread = threading.Thread(target=self._draw_until_over, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.erase()

    def wait_for(self, names: Sequence[str], deadline: float | None = None) -> None:
        """What is waited for from now on.

        :param deadline: when it will be killed, by `time.monotonic`
        """
        self._names, self._deadline = names, deadline

    def erase(self) -> None:
        """Take the line away, before something else is printed."""
        with self._drawing:
            if self._drawn:
                self._write("\r\x1b[K")
                self._drawn = False

    def _draw_until_over(self) -> None:
        while not self._over.wait(PATIENCE_SECONDS):
            if not self._names:
                continue
            with self._drawing:
                line = describe(self._doing, self._names, self._deadline, time.monotonic())
                self._write("\r\x1b[K" + shorten(line, max(1, columns(2) - 1)))
                self._drawn = True

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            return  # the terminal has gone; what is waited for has not


def describe(doing: str, names: Sequence[str], deadline: float | None, now: float) -> str:
    """The line: "stopping worker and 2 more; SIGKILL in 7 s"."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    text = f"{doing} {printable(names[0])}{more}"
    if deadline is None:
        return text
    left = round(deadline - now)
    return f"{text}; SIGKILL in {left} s" if left > 0 else f"{text}; killed"
