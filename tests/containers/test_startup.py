"""What commands import when no server answers: nobody waits for what a command does not use.

The interpreter itself lists every import on stderr, up to the very end of the process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import craterun
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli

pytestmark = [pytest.mark.root, pytest.mark.no_server]
cli = helpers.cli

PROGRAM = Path(craterun.__file__).parent / "bin/craterun"
"""What installers copy, with another first line."""
PARSER = {"cyclopts", "rich", "docstring_parser", "craterun.cli.parser"}
EVENT_LOOPS = {"trio", "anyio", "asyncio", "craterun.supervisor.main", "craterun.keeper.spawn"}
SLOW = {
    "msgspec", "inspect", "dataclasses", "ctypes", "socket", "subprocess", "logging", "threading",
    "pathlib", "craterun.core.life", "craterun.state.records",
}  # fmt: skip
_IMPORTED = re.compile(rb"import time: +\d+ \| +\d+ \| *(\S+)")


def imported(cli: Cli, *arguments: str) -> set[str]:
    """Every module that a command imports; it has to succeed."""
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *arguments],
        env={
            **os.environ,
            "CRATERUN_ROOT": str(cli.state_root),
            "PYTHONPATH": str(Path(craterun.__file__).parent.parent),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    modules = {name.decode() for name in _IMPORTED.findall(finished.stderr)}
    assert "craterun" in modules
    return modules


@pytest.fixture
def stopped(cli: Cli) -> str:
    return cli("run", "--", "/bin/sh", "-c", "echo said").stdout.decode().strip()


@pytest.fixture
def running(cli: Cli) -> str:
    return cli("run", "-d", "--name", "live", "--", *SLEEP).stdout.decode().strip()


def test_the_program_is_one_that_installers_take_for_a_python_script() -> None:
    assert PROGRAM.read_text().startswith("#!python\n")  # which they replace
    assert os.access(PROGRAM, os.X_OK)


def test_the_version_is_told_at_once(cli: Cli) -> None:
    modules = imported(cli, "--version")
    assert not modules & (PARSER | EVENT_LOOPS | SLOW | {"re", "typing", "craterun.cli.app"})


@pytest.mark.parametrize("options", [(), ("-q",), ("--running",), ("--format", "table")])
def test_ps_imports_neither_parser_nor_event_loop_nor_msgspec(
    cli: Cli, stopped: str, running: str, options: tuple[str, ...]
) -> None:
    assert stopped != running
    modules = imported(cli, "ps", *options)
    assert "craterun.client.observing" in modules
    assert not modules & (PARSER | EVENT_LOOPS | SLOW)


def test_logs_imports_neither_parser_nor_event_loop_nor_msgspec(
    cli: Cli, stopped: str, running: str
) -> None:
    modules = imported(cli, "logs", stopped, running) | imported(cli, "logs", "-n", "1", stopped)
    assert "craterun.state.logcursor" in modules
    assert not modules & (PARSER | EVENT_LOOPS | SLOW)


def test_commands_that_manage_import_neither_parser_nor_event_loop(cli: Cli, running: str) -> None:
    for arguments in (
        ["ps", "--format", "json"],
        ["inspect", running],
        ["events", "--filter", "type=started"],
        ["top", running],
        ["pause", "live"],
        ["unpause", "live"],
        ["kill", "-s", "CONT", "live"],
        ["stop", "--time", "0", "live"],
        ["wait", running],
        ["rm", "--force", "live"],
    ):
        modules = imported(cli, *arguments)
        assert not modules & (PARSER | EVENT_LOOPS), arguments


@pytest.mark.parametrize("options", [(), ("--attach",), ("--rm", "-m", "64m"), ("-d",)])
def test_run_imports_no_parser(cli: Cli, options: tuple[str, ...]) -> None:
    modules = imported(cli, "run", *options, "--", "/bin/true")
    assert "craterun.core.spec" in modules
    assert not modules & PARSER
    assert not modules & {"anyio", "asyncio", "craterun.client.api", "_ssl"}


def test_exec_imports_no_parser(cli: Cli, running: str) -> None:
    modules = imported(cli, "exec", running, "--", "/bin/true")
    assert "trio" in modules
    assert not modules & PARSER


def test_help_is_the_parsers(cli: Cli) -> None:
    assert "cyclopts" in imported(cli, "run", "--help")


def test_the_interpreter_is_not_taken_down_but_all_output_is_there(cli: Cli, stopped: str) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(print, 'taken down')\n"
        "sys.argv = ['craterun', 'ps', '-q']\n"
        "from craterun.__main__ import main; main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CRATERUN_ROOT": str(cli.state_root)},
        capture_output=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.decode() == f"{stopped}\n"
