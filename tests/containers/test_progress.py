"""A line on the terminal for whoever waits; nothing for a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli
from tests.containers.screens import Window

cli = helpers.cli


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window()
    yield window
    window.close()


def deaf(cli: Cli, rootfs: Path, name: str) -> str:
    """The id of a container that SIGTERM does not end: PID 1 has no handler for it."""
    return cli.detach("--rootfs", str(rootfs), "--name", name, "--", *SLEEP).id


def test_stop_says_who_is_waited_for_and_how_long_and_takes_it_back(
    cli: Cli, rootfs: Path, window: Window
) -> None:
    ids = [deaf(cli, rootfs, name) for name in ("one", "two")]
    window.run(cli, "stop", "--time", "3", "one", "two")
    told = "stopping one and 1 more; SIGKILL in"
    window.until(lambda lines: any(line.startswith(told) for line in lines))
    assert window.wait() == 0
    assert [line for line in window.lines if line] == ids


def test_wait_names_what_still_runs(cli: Cli, rootfs: Path, window: Window) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--name", "long", "--", *SLEEP)
    window.run(cli, "wait", "long")
    window.until_line("waiting for long")
    cli.ok("kill", live.id)
    assert window.wait() == 0
    assert [line for line in window.lines if line] == ["137"]


def test_without_a_terminal_nothing_is_said(cli: Cli, rootfs: Path) -> None:
    container_id = deaf(cli, rootfs, "one")
    finished = cli("stop", "--time", "1.5", "one")
    assert (finished.stdout, finished.stderr) == (f"{container_id}\n".encode(), b"")
