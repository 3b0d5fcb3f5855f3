"""craterun shutdown: it says that the server has ended when it has, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import Cli, Live, read_line
from tests.serving import Server, look_until, serving

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli
DEAF = "trap 'echo deaf' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture
def server(state_root: Path) -> Iterator[Server]:
    """One that may be ended."""
    with serving(state_root) as running:
        yield running


class Ending:
    """A server that was told to end, and waits for a container that does not."""

    def __init__(self, cli: Cli) -> None:
        self.live: Live = cli.detach("--stop-timeout", "1000", "--", "sh", "-c", DEAF)
        log = cli.start("--no-serve", "logs", "--follow", self.live.id)
        assert read_line(log) == "ready"
        self.shutdown = cli.start("shutdown")
        assert read_line(log) == "deaf"


@pytest.fixture
def ending(server: Server, cli: Cli) -> Ending:
    del server
    return Ending(cli)


def wait_locking(pid: int) -> None:
    """Until a process waits for a lock (proc_locks(5))."""

    def waits() -> bool:
        lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        return any(words[1] == "->" and words[5] == str(pid) for words in lines)

    look_until(waits)


def test_a_server_that_is_killed_before_it_has_ended_has_not(
    server: Server, cli: Cli, ending: Ending
) -> None:
    second = cli.start("shutdown")
    wait_locking(second.pid)
    server.end(signal.SIGKILL)
    for process in (ending.shutdown, second):
        out, err = process.communicate(timeout=helpers.PATIENCE_SECONDS)
        assert (process.returncode, out) == (125, b"")
        assert b"was killed before it had ended; containers that it ran live on" in err
    assert cli.live(ending.live.id).pid == ending.live.pid
    assert "no server" in cli.refused("shutdown")


def test_a_server_that_is_ending_is_waited_for(server: Server, cli: Cli, ending: Ending) -> None:
    second = cli.start("shutdown")
    wait_locking(second.pid)
    assert "is ending already" in cli.refused("shutdown", "--leave-running")
    assert "there is a server" in cli.refused("serve")
    cli.ok("kill", ending.live.id)
    for process in (ending.shutdown, second):
        assert process.communicate(timeout=helpers.PATIENCE_SECONDS) == (b"", b"")
        assert process.returncode == 0
    assert server.wait() == (0, b"")
    assert not Path(f"{server.path}.lock").exists()
    assert "no server" in cli.refused("shutdown")


def test_a_server_of_another_user_is_told_of(server: Server, state_root: Path) -> None:
    """Even where the file would let them."""
    folder = os.open(server.path.parent, os.O_PATH)
    script = """
        import os, sys
        from craterun.cli.app import run_command_line
        from craterun.cli import output, serve  # which another user may not find
        os.setgid(1)
        os.setuid(1)
        sys.exit(run_command_line(["shutdown"]))
    """
    server.path.chmod(0o666)
    socket = f"/proc/self/fd/{folder}/{server.path.name}"
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=cli_environment(state_root, {"CRATERUN_SOCKET": socket}),
        pass_fds=[folder],
        capture_output=True,
        check=False,
    )
    os.close(folder)
    complaint = helpers.the_complaint(finished, 125)
    assert complaint.endswith("does not let us in: it is for user 0")
