"""Many clients of a server (`craterun serve`) from one small process: a fork for each command.

A client is `craterun.cli.thin` and nothing else, as in the real program; only the start of an
interpreter for each is left out.  What a test wants of clients is written as generators, which
yield what they wait for.  One thread, since it forks all the time.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Generator, Sequence

from craterun.cli import thin

PATIENCE_SECONDS = 120.0
"""Whoever waits longer than this waits for ever."""
_BYTES = 1 << 16
_UNSERVED_FD = 3
NOT_SERVED = 98
"""What a client exits with that would have to do its work itself."""


class Wait:
    """What a script waits for.

    :ivar seconds: for how long at most
    :ivar done: whether it has come true; None: only time is to pass
    """

    __slots__ = ("done", "end", "seconds", "what")

    def __init__(
        self, what: str, done: Callable[[], bool] | None, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Begins now."""
        self.what = what
        self.done = done
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the script can go on.

        :raises StuckError: it has waited for too long
        """
        if self.done is not None and self.done():
            return True
        late = time.monotonic() >= self.end
        if late and self.done is not None:
            raise StuckError(f"after {self.seconds:g} s still no {self.what}")
        return late


class StuckError(Exception):
    """What was waited for has not come."""


Script = Generator[Wait, None, None]


class Client:
    """One command, its streams and its end.

    :ivar code: as of a shell: 128+N if killed by signal N; None while it runs
    :ivar stdout: what it has written
    :ivar stderr: likewise
    """

    def __init__(self, crowd: Crowd, arguments: Sequence[str], data: bytes | None) -> None:
        """Starts it."""
        self.arguments = arguments
        self.code: int | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._crowd = crowd
        self._open = 0
        out, out_child = os.pipe2(os.O_CLOEXEC)
        err, err_child = os.pipe2(os.O_CLOEXEC)
        if data is None:
            given, given_child = -1, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        else:
            given_child, given = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            crowd.become_client(arguments, (given_child, out_child, err_child))
        for fd in (given_child, out_child, err_child):
            os.close(fd)
        pidfd = os.pidfd_open(self.pid)
        crowd.watch(pidfd, select.POLLIN, lambda: self._reap(pidfd))
        self._read(out, self.stdout)
        self._read(err, self.stderr)
        if data is not None:
            self._write(given, data)

    @property
    def ended(self) -> bool:
        """Whether it has exited, and both of its streams have, too."""
        return self.code is not None and not self._open

    def end(self) -> Wait:
        """To be waited for: everything is over."""
        return Wait(f"end of {' '.join(self.arguments)}", lambda: self.ended)

    def says(self, text: bytes) -> Wait:
        """To be waited for: it has written that to stdout, or has ended."""
        said = self.stdout
        return Wait(f"{text!r} of {' '.join(self.arguments)}", lambda: text in said or self.ended)

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.code is None:
            os.kill(self.pid, number)  # it is our child, and not reaped

    def _reap(self, pidfd: int) -> None:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        self._crowd.forget(pidfd)
        killed = result.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        self.code = result.si_status + 128 if killed else result.si_status

    def _read(self, fd: int, into: bytearray) -> None:
        self._open += 1

        def read() -> None:
            data = os.read(fd, _BYTES)
            into.extend(data)
            if not data:
                self._crowd.forget(fd)
                self._open -= 1

        self._crowd.watch(fd, select.POLLIN, read)

    def _write(self, fd: int, data: bytes) -> None:
        os.set_blocking(fd, False)
        rest = memoryview(data)

        def write() -> None:
            nonlocal rest
            try:
                rest = rest[os.write(fd, rest) :] if rest else rest
            except BrokenPipeError:
                rest = rest[:0]  # it does not want to have it
            if not rest:
                self._crowd.forget(fd)

        self._crowd.watch(fd, select.POLLOUT, write)


class Crowd:
    """Clients, and the scripts that start them."""

    def __init__(self, arguments: Sequence[str], here: str) -> None:
        """:param arguments: what every command begins with
        :param here: working directory of all of them
        """
        self._arguments = list(arguments)
        self._here = here
        self._handlers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._unserved, self._unserved_child = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self, *arguments: str, data: bytes | None = None) -> Client:
        """A client for one command line.

        :param data: its stdin; None: /dev/null
        """
        return Client(self, arguments, data)

    def unserved(self) -> list[str]:
        """Command lines that no server has run."""
        try:
            return os.read(self._unserved, _BYTES).decode(errors="replace").splitlines()
        except BlockingIOError:
            return []

    def close(self) -> None:
        """When nothing runs."""
        os.close(self._unserved)
        os.close(self._unserved_child)

    def become_client(self, arguments: Sequence[str], streams: Sequence[int]) -> None:
        """In the child: what `craterun.__main__` does while there is a server.  Never returns."""
        try:
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            os.dup2(self._unserved_child, _UNSERVED_FD)
            # The pipes of all the others, whose ends would never be seen.
            os.closerange(_UNSERVED_FD + 1, 1 << 20)
            os.chdir(self._here)
            thin.try_server(thin.Options([*self._arguments, *arguments]))
            os.write(_UNSERVED_FD, " ".join([*arguments, "\n"]).encode())
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(NOT_SERVED)

    def watch(self, fd: int, mask: int, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever ``fd``, which is taken, is ready."""
        self._handlers[fd] = handler
        self._poll.register(fd, mask)

    def forget(self, fd: int) -> None:
        """Close it."""
        self._poll.unregister(fd)
        del self._handlers[fd]
        os.close(fd)

    def run(self, scripts: Callable[[], Script | None], concurrency: int, wrong: list[str]) -> None:
        """So many scripts at a time, until there is none left.

        :param scripts: gives the next one
        :param wrong: told of those that are stuck; they are given up, not their clients
        """
        running: dict[Script, Wait] = {}
        more = True
        while more or running:
            while more and len(running) < concurrency:
                script = scripts()
                more = script is not None
                if script is not None:
                    _go_on(script, running, wrong)
            moved = False
            for script, wait in list(running.items()):
                try:
                    if wait.is_over():
                        moved = True  # what it waits for next may have come already
                        _go_on(script, running, wrong)
                except StuckError as error:
                    wrong.append(str(error))
                    script.close()
                    del running[script]
            if not moved and (len(running) == concurrency or not more):
                self._turn(running)

    def _turn(self, running: dict[Script, Wait]) -> None:
        """Until something has happened."""
        now = time.monotonic()
        first = min((wait.end for wait in running.values()), default=now)
        for fd, _ in self._poll.poll(max(0.0, first - now) * 1000):
            if fd in self._handlers:
                self._handlers[fd]()


def _go_on(script: Script, running: dict[Script, Wait], wrong: list[str]) -> None:
    try:
        running[script] = next(script)
    except StopIteration:
        running.pop(script, None)
    except OSError as error:
        wrong.append(str(error))
        running.pop(script, None)
