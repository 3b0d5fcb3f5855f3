"""Signals of a client, at times and in places where a server could get in their way."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import Cli, read_some
from tests.serving import Server, look_until

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """It answers nobody while the block runs."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def wait_heeding(pid: int) -> None:
    """Until a client has a handler for signals that it passes on: it is about to ask the server."""
    bit = signal.SIGUSR1 - 1
    look_until(lambda: int(helpers.Live(pid).status()["SigCgt"], 16) >> bit & 1)


def require_nothing_was_run(cli: Cli) -> None:
    """Not even when the server has come to what it was asked for."""
    cli.ok("run", "--rm", "--", "true")
    assert cli.ids() == set()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGQUIT, -signal.SIGQUIT),
    ],
)
def test_a_client_that_waits_for_a_server_can_be_ended(
    server: Server, cli: Cli, number: int, code: int
) -> None:
    with stopped(server):
        process = cli.behind("prlimit", "--core=0").start("run", "--detach", "--", "true")
        wait_heeding(process.pid)
        process.send_signal(number)
        assert process.wait(helpers.PATIENCE_SECONDS) == code
    # Its streams are among what the server has not received yet, and end when it lets go of them.
    assert process.communicate(timeout=helpers.PATIENCE_SECONDS) == (b"", b"")
    require_nothing_was_run(cli)


def test_ctrl_z_at_a_client_that_waits_for_a_server_has_it_go_on_without(
    server: Server, cli: Cli
) -> None:
    with stopped(server):
        process = cli.start("run", "--attach", "--", "echo", "once", process_group=0)
        wait_heeding(process.pid)
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    cli.ok("ps")  # the server has had its chance
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=helpers.PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (0, b"once\n", b"")
    assert len(cli.ids()) == 1


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_not_waited_for(server: Server, cli: Cli) -> None:
    with stopped(server):
        running = [
            cli.start("run", "--attach", "--", "echo", "once"),
            # More than a socket takes before somebody reads: it cannot even be asked.
            cli.start("run", "--attach", "--", "sh", "-c", "echo once", *["x" * 100_000] * 5),
        ]
        assert [process.wait(helpers.PATIENCE_SECONDS) for process in running] == [0, 0]
    results = [process.communicate(timeout=helpers.PATIENCE_SECONDS) for process in running]
    assert results == [(b"once\n", b"")] * 2
    cli.ok("run", "--rm", "--", "true")
    assert len(cli.ids()) == 2


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
