"""What the tests of logs have in common: containers that write, and the command that reads."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.containers import helpers

MUCH = 3_000_000
Process = subprocess.Popen[bytes]


def sh(rootfs: Path, script: str, *options: str) -> tuple[str, ...]:
    return (*options, "--rootfs", str(rootfs), "--", "sh", "-c", script)


def out(process: Process) -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


def err(process: Process) -> int:
    assert process.stderr is not None
    return process.stderr.fileno()


def ended(process: Process) -> tuple[int, bytes, bytes]:
    """Exit code and the rest of both outputs."""
    rest = process.communicate(timeout=helpers.PATIENCE_SECONDS)
    return process.returncode, *rest


def stopped(process: Process) -> Process:
    """The same, in state T."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return process
