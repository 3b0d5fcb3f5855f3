"""A server (``craterun serve``) for tests, and who works for it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.leaks import open_descriptors

PATIENCE_SECONDS = 60


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path

    @property
    def pid(self) -> int:
        """Of its supervisor."""
        return self.process.pid

    def descriptors(self) -> dict[int, str]:
        """What it has open."""
        return open_descriptors(self.pid)

    def children(self) -> dict[str, int]:
        """Its children by name: the keeper and the spawner, once they have given themselves one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = {comm(pid): pid for pid in children(self.pid)}
            if {"craterun-keeper", "craterun-spawn"} <= found.keys():
                break
            os.sched_yield()
        return found

    def workers(self) -> list[int]:
        """Processes that run commands, or wait for one."""
        return children(self.children()["craterun-spawn"])

    def busy_workers(self) -> list[int]:
        """Those that have a client now: their stdout is not /dev/null."""
        found = []
        for pid in self.workers():
            try:
                if os.readlink(f"/proc/{pid}/fd/1") != "/dev/null":
                    found.append(pid)
            except OSError:
                continue  # it has just ended
        return found

    def busy_worker(self) -> int:
        """One that has a client, as soon as there is one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for pid in self.busy_workers():
                return pid
            os.sched_yield()
        raise AssertionError("no worker has got a job")

    @contextmanager
    def let_in(
        self, start: Callable[[], subprocess.Popen[bytes]]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The client that ``start`` starts: it is let in, and no worker does anything for it before
        the block ends.
        """
        workers = self.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        before = len(self.descriptors())
        client = start()
        # Its three streams and its directory have come.
        look_until(lambda: len(self.descriptors()) > before + 3)
        yield client
        for worker in workers:
            os.kill(worker, signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, bytes]:
        """Signal it, and wait until it has ended: exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, bytes]:
        """Until it has ended."""
        _, stderr = self.process.communicate(timeout=2 * PATIENCE_SECONDS)
        return self.process.returncode, stderr


def look_until(condition: Callable[[], object]) -> None:
    """By looking again and again at what nothing tells of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def children(pid: int) -> list[int]:
    """By the kernel's account (proc(5), CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def comm(pid: int) -> str:
    """A process's name."""
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


@contextmanager
def serving(
    state_root: Path,
    *options: str,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """A server for ``state_root``, as long as the block runs.

    :param prefix: command to start it with
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "craterun", "serve", *options],
        env={**os.environ, "CRATERUN_ROOT": str(state_root), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            assert poll.poll(PATIENCE_SECONDS * 1000), "the server does not begin"
            line = os.read(process.stdout.fileno(), 4096).decode()
            assert line.startswith("craterun serves at "), (line, process.communicate())
            yield Server(process, Path(line.removeprefix("craterun serves at ").rstrip("\n")))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
                assert (process.returncode, stderr) == (0, b"")
