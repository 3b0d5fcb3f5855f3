"""What becomes of those who are there when a server ends, or who come at that moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli, detach_obliging, read_line
from tests.serving import Server, look_until, serving
from tests.threads import again_and_again

cli = helpers.cli
DEAF = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
SHUT_DOWN = b"craterun: the server was shut down before this command had ended\n"


@contextmanager
def knocking(path: Path) -> Iterator[None]:
    """Somebody connects and leaves, again and again."""

    def knock() -> None:
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            sock.connect(str(path))

    with again_and_again(knock):
        yield


@pytest.mark.parametrize("options", [(), ("--leave-running",)], ids=["stop", "leave"])
def test_who_knocks_while_it_ends_disturbs_nothing(
    cli: Cli, state_root: Path, options: tuple[str, ...]
) -> None:
    for _ in range(6):
        with serving(state_root, *options) as server:
            live = detach_obliging(cli)
            with knocking(server.path):
                assert server.end() == (0, b"")
            if options:
                assert cli.live(live.id).pid == live.pid
                cli.ok("stop", live.id)
            assert cli.record(live.id)["exit_code"] == 5
            cli.ok("rm", live.id)


def test_commands_that_end_by_its_end_do_so_with_their_own_codes(
    cli: Cli, state_root: Path
) -> None:
    with serving(state_root) as server:
        ours = detach_obliging(cli)
        others = cli.behind("env", "CRATERUN_SOCKET=/nowhere").detach("--", *DEAF)
        waiting = cli.start("wait", ours.id)
        log = cli.start("logs", "--follow", ours.id)
        assert read_line(log) == "ready"
        deaf = cli.start("events", "--follow")
        look_until(lambda: len(server.busy_workers()) == 3)
        stopping = cli.start("stop", "--time", "1", others.id)
        assert server.end() == (0, b"")
        assert waiting.communicate(timeout=60) == (b"5\n", b"")
        assert waiting.returncode == 0
        assert log.communicate(timeout=60) == (b"bye\n", b"")
        assert log.returncode == 0
        assert stopping.wait(60) == 0
        assert cli.record(others.id)["exit_code"] == 137
        assert deaf.communicate(timeout=60)[1] == SHUT_DOWN
        assert deaf.returncode == 125


def test_what_begins_after_a_second_signal_is_killed_as_well(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as server:
        run = ("run", "--attach", "--stop-timeout", "1000", "--", *DEAF)
        with server.let_in(lambda: cli.start(*run)) as starting:
            server.process.send_signal(signal.SIGTERM)
            look_until(lambda: not server.path.exists())
            server.process.send_signal(signal.SIGTERM)
        # Of itself, it would not have ended for a thousand seconds.
        assert server.wait()[0] == 0
        starting.communicate(timeout=60)
        assert starting.returncode == 137


def test_sigterm_while_it_begins_leaves_no_socket(cli: Cli, state_root: Path) -> None:
    path = state_root / ".serve.sock"
    process = cli.start("serve")
    look_until(path.exists)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode in (0, 128 + signal.SIGTERM)
    assert not path.exists()
    assert not Path(f"{path}.lock").exists()


IGNORING = "import os, signal, sys; signal.signal(17, 1); os.execvp(sys.argv[1], sys.argv[1:])"


def test_a_parent_that_ignores_its_children_is_no_reason_not_to_reap_ours(
    cli: Cli, state_root: Path
) -> None:
    ignoring = cli.behind(sys.executable, "-c", IGNORING)
    for _ in range(4):
        finished = ignoring("--no-serve", "run", "--attach", "--", "sh", "-c", "exit 3")
        assert (finished.returncode, finished.stderr) == (3, b"")
    process = ignoring.start("serve")
    assert read_line(process).startswith("craterun serves at ")
    server = Server(process, state_root / ".serve.sock")
    assert cli.ok("run", "--attach", "--", "echo", "served") == "served\n"
    assert server.end() == (0, b"")


def test_a_variable_without_a_name_is_not_in_the_way(cli: Cli, state_root: Path) -> None:
    with serving(state_root):
        command = list(map(os.fsencode, cli.command("run", "--attach", "--", "echo", "hi")))
        environment = [b"=a=b", *(k + b"=" + v for k, v in os.environb.items())]
        environment.append(b"CRATERUN_ROOT=" + os.fsencode(state_root))
        # No function of Python's makes such an environment; execve(2) takes it.
        code = (
            "import ctypes, sys; libc = ctypes.CDLL(None);"
            "n = int(sys.argv[1]); words = [w.encode() for w in sys.argv[2:]];"
            "arrays = [(ctypes.c_char_p * (len(x) + 1))(*x, None) for x in (words[:n], words[n:])];"
            "libc.execve(words[0], *arrays)"
        )
        words = [str(len(command)).encode(), *command, *environment]
        finished = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, timeout=60, check=False
        )
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"hi\n", b"")
