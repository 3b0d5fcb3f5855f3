"""How stats shows its samples: on a terminal, in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyte
import pytest

from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import PATIENCE_SECONDS, SLEEP, Cli, Live, lines_of
from tests.containers.streams_helpers import errors_of, wait_readable
from tests.leaks import open_descriptors

cli = helpers.cli


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container named ``one`` that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)


def test_a_pipe_gets_one_plain_table_per_sample(cli: Cli, live: Live) -> None:
    following = cli.start("stats", "--interval", "0.1")
    lines = list(islice(lines_of(following), 6))
    assert [line.split("  ")[0] for line in lines] == ["CONTAINER", "one"] * 3
    assert all(line.isprintable() for line in lines)
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=PATIENCE_SECONDS)
    assert (following.returncode, errors) == (130, b"")


def test_a_reader_that_leaves_ends_it_quietly(cli: Cli, live: Live) -> None:
    following = cli.start("stats", "--interval", "0.1")
    assert following.stdout is not None
    following.stdout.close()
    errors = following.stderr.read() if following.stderr is not None else b""
    assert (following.wait(PATIENCE_SECONDS), errors) == (141, b"")


class Emulator:
    """``craterun stats`` on a terminal of ours."""

    def __init__(self, state_root: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.screen = pyte.Screen(120, 12)
        self._stream = pyte.ByteStream(self.screen)
        self._stream.feed(b"$ above\r\n")
        self._set_size(12, 120)
        self.raw = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *helpers.Cli(state_root).command("stats", *arguments)],
            env=cli_environment(state_root, {"TERM": "xterm"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self._set_size(rows, columns)

    def shows(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def until(self, condition: Callable[[], bool]) -> None:
        """Read what it writes until the screen is as expected."""
        while not condition():
            wait_readable(self.master)
            data = os.read(self.master, 65536)
            self.raw += data
            self._stream.feed(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def emulate(state_root: Path) -> Iterator[Callable[..., Emulator]]:
    made: list[Emulator] = []

    def make(*arguments: str) -> Emulator:
        made.append(Emulator(state_root, *arguments))
        return made[-1]

    yield make
    for emulator in made:
        emulator.close()


def test_a_terminal_sees_one_table_that_changes_in_place(
    cli: Cli, live: Live, rootfs: Path, emulate: Callable[..., Emulator]
) -> None:
    terminal = emulate("--interval", "0.1")
    terminal.until(lambda: terminal.raw.count(b"CONTAINER") >= 3 and "one" in terminal.shows()[-1])
    assert [line.split()[0] for line in terminal.shows()] == ["$", "CONTAINER", "one"]
    cli.detach("--rootfs", str(rootfs), "--name", "two", "--", *SLEEP)
    terminal.until(lambda: terminal.shows()[-1].startswith("two"))
    assert [line.split()[0] for line in terminal.shows()] == ["$", "CONTAINER", "one", "two"]
    cli.ok("rm", "--force", "one")
    terminal.until(lambda: "one" not in "".join(terminal.shows()))
    terminal.until(lambda: len(terminal.shows()) == 3)
    assert [line.split()[0] for line in terminal.shows()] == ["$", "CONTAINER", "two"]
    os.write(terminal.master, b"\x03")
    assert terminal.process.wait(PATIENCE_SECONDS) == 130


def test_a_resized_terminal_is_redrawn_at_once(
    live: Live, emulate: Callable[..., Emulator]
) -> None:
    terminal = emulate("--interval", "3600")  # no second sample during this test
    terminal.until(lambda: terminal.shows()[-1].startswith("one"))
    drawn = terminal.raw.count(b"CONTAINER")
    terminal.resize(12, 30)
    terminal.until(lambda: terminal.raw.count(b"CONTAINER") > drawn)
    terminal.until(lambda: terminal.shows()[-1].startswith("one"))
    shown = terminal.shows()
    assert [line.split()[0] for line in shown] == ["CONTAINER", "one"]
    assert max(map(len, shown)) < 30


def test_the_last_figures_stay_when_all_have_ended(
    cli: Cli, live: Live, emulate: Callable[..., Emulator]
) -> None:
    terminal = emulate("--interval", "0.1", "one")
    terminal.until(lambda: terminal.shows()[-1].startswith("one"))
    cli.ok("kill", "one")
    assert terminal.process.wait(PATIENCE_SECONDS) == 0
    assert terminal.shows()[-1].startswith("one")


def test_no_file_is_opened_anew_for_a_sample(cli: Cli, live: Live) -> None:
    following = cli.start("stats", "--format", "json", "--interval", "0.1", "one")
    lines = lines_of(following)
    next(lines)

    def held() -> dict[int, str]:
        found = open_descriptors(following.pid)
        return {number: path for number, path in found.items() if live.id in path}

    before = held()
    assert any("memory" in path for path in before.values())
    for _ in range(3):
        next(lines)
    assert held() == before
    assert not wait_nothing(errors_of(following))


def wait_nothing(fd: int) -> bytes:
    """What is on ``fd`` now."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""
