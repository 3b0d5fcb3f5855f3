"""A terminal to run command lines in: a pseudoterminal with an emulator behind it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pyte

from tests.conftest import cli_environment
from tests.containers.helpers import PATIENCE_SECONDS, Cli


class Window:
    """One terminal, and at most one command line in its foreground at a time."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.master, self.side = os.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._screen.write_process_input = self._answer  # type: ignore[method-assign,assignment]
        self._stream = pyte.ByteStream(self._screen)
        self.received = bytearray()
        self.process: subprocess.Popen[bytes] | None = None
        self._set_size(rows, columns)
        self.before = termios.tcgetattr(self.side)

    def _answer(self, text: str) -> None:
        # A program asked where the cursor is, as an emulator is asked.
        os.write(self.master, text.encode())

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def run(
        self, cli: Cli, *arguments: str, ignored: signal.Signals | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command line as a shell on this terminal would, or one that ignores a signal."""

        def prepare() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.process = subprocess.Popen(
            cli.command(*arguments),
            env=cli_environment(cli.state_root, {"TERM": "linux"}),
            stdin=self.side,
            stdout=self.side,
            stderr=self.side,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 (no threads)
        )
        cli._started.append(self.process)
        return self.process

    def resize(self, rows: int, columns: int) -> None:
        """As if the user pulled at the window's corner; the kernel tells the foreground."""
        self._screen.resize(rows, columns)
        self._set_size(rows, columns)

    def type(self, text: str | bytes) -> None:
        """Press keys."""
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    @property
    def lines(self) -> list[str]:
        """What can be seen."""
        return [line.rstrip() for line in self._screen.display]

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """Read until the screen is as wanted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not seen(self.lines):
            left = deadline - time.monotonic()
            assert left > 0, "\n".join(self.lines)
            # Of a change of mode, no descriptor tells: so look again now and then.
            if select.select([self.master], [], [], min(left, 0.05))[0]:
                data = os.read(self.master, 65536)
                self.received += data
                self._stream.feed(data)
        return self.lines

    def until_line(self, text: str) -> list[str]:
        """Read until a line of the screen is exactly this."""
        return self.until(lambda lines: text in lines)

    def wait(self) -> int:
        """Read until the command line has ended; its exit code."""
        assert self.process is not None
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while pidfd not in (ready := select.select([self.master, pidfd], [], [], 60)[0]):
                assert ready, "\n".join(self.lines)
                data = os.read(self.master, 65536)
                self.received += data
                self._stream.feed(data)
        finally:
            os.close(pidfd)
        while select.select([self.master], [], [], 0)[0]:  # its last words
            data = os.read(self.master, 65536)
            self.received += data
            self._stream.feed(data)
        return self.process.wait()

    def is_as_before(self) -> bool:
        """Whether the terminal's mode is the one that it had in the beginning."""
        return termios.tcgetattr(self.side) == self.before

    def is_raw(self) -> bool:
        """Whether keys arrive one by one and unseen."""
        return not termios.tcgetattr(self.side)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def hang_up(self) -> None:
        """As if the window was closed; the command line goes on as it likes."""
        for fd in (self.master, self.side):
            if fd >= 0:
                os.close(fd)
        self.master = self.side = -1

    def close(self) -> None:
        """Hang up, and kill."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.hang_up()
