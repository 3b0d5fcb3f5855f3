"""Signals of a client, at times and in places where a server could get in their way."""

from __future__ import annotations

import os
import pty
import signal

import pytest

from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import Cli, read_some
from tests.serving import Server

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli


def test_ctrl_z_without_a_shell_above_is_ignored(server: Server, cli: Cli) -> None:
    """Nobody could have the client go on: the kernel does not stop orphaned process groups."""
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"
    command = cli.command("run", "--attach", "--", "sh", "-c", script)
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execve(command[0], command, cli_environment(cli.state_root))
        finally:
            os._exit(1)
    assert b"ready" in read_some(terminal)
    os.write(terminal, b"\x1a")
    assert b"^Z" in read_some(terminal)  # the terminal's echo, after it has sent the signal
    os.kill(pid, signal.SIGUSR1)
    _, status = os.waitpid(pid, os.WUNTRACED)
    os.close(terminal)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 9
