"""What a worker says to the server, and what becomes of one that says what it must not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from craterun.linux.fd import Fd
from craterun.serve import frames
from craterun.serve.workers import Worker


@pytest.mark.parametrize(
    "said",
    [(frames.MAX_REQUEST_BYTES * 2).to_bytes(4, "little") + b"x" * 100, frames.frame(b"\x09")],
    ids=["oversized", "senseless"],
)
async def test_a_worker_that_says_what_it_must_not_is_killed(said: bytes) -> None:
    """It would wait for ever for the rest to be taken, and its client for the worker."""
    ours, theirs = socket.socketpair()
    with subprocess.Popen(["sleep", "1000"]) as process, theirs:
        try:
            worker = Worker(process.pid, ours, Fd(os.pidfd_open(process.pid)))
            theirs.sendall(said)
            assert await worker.receive() is None
            assert process.wait(60) == -signal.SIGKILL
            worker.close()
        finally:
            process.kill()
