"""Who is attached to a terminal, or follows a log, is shown each byte at once, and still all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli, Live
from tests.containers.screens import Window

cli = helpers.cli
LEAVE = "\x10\x11"
KEYS = ("--detach-keys", "ctrl-p,ctrl-q")
SHELL = 'echo ready; while read -r line; do eval "$line"; done'


@pytest.fixture
def window() -> Iterator[Window]:
    """A terminal."""
    window = Window(25, 90)
    yield window
    window.close()


def shell(cli: Cli, rootfs: Path, *options: str) -> Live:
    """A shell with a terminal, in the background."""
    return cli.detach("-t", *options, "--rootfs", str(rootfs), "--", "sh", "-c", SHELL)


def until_received(window: Window, data: bytes, times: int = 1) -> None:
    """Read until that has been shown."""
    window.until(lambda _: window.received.count(data) == times)


def join(window: Window, cli: Cli, live: Live, *options: str) -> None:
    """Attach, and see that keys arrive."""
    window.run(cli, "attach", *options, live.id)
    window.until(lambda _: window.is_raw())
    window.type("echo jo''ined\r")
    window.until_line("joined")


@pytest.mark.parametrize("file_bytes", ["4k", "0"])
def test_dialogue_and_floods_are_shown_to_the_byte_through_rotations(
    file_bytes: str, window: Window, cli: Cli, rootfs: Path
) -> None:
    """Few bytes at a time, each time after the ones before were seen; now and then many."""
    options = ("--log-max-size", file_bytes, "--log-max-files", "10000")
    live = shell(cli, rootfs, *options)
    join(window, cli, live, "--logs")
    for number in range(120):
        window.type(f"echo an''swer {number}\r")
        until_received(window, b"answer %d\r\n" % number)
        if number % 40 == 20:
            window.type(f"seq 20000; echo fl''ood {number}\r")
            until_received(window, b"flood %d\r\n" % number)
    window.type("exit 5\r")
    assert window.wait() == 5
    logged = cli.ok("logs", live.id).encode()
    assert bytes(window.received) == logged
    assert window.is_as_before()


def test_keys_leave_though_nobody_reads_the_screen(window: Window, cli: Cli, rootfs: Path) -> None:
    """All that was shown is lost to who has left; the container has not been held up."""
    live = shell(cli, rootfs)
    join(window, cli, live, *KEYS)
    window.type("seq 200000; echo wri''tten\r")
    while b"written\r\n" not in cli.log(live.id):
        pass
    assert window.is_raw()
    window.type(LEAVE)
    while window.is_raw():
        pass
    assert window.is_as_before()
    assert window.wait() == 0
    assert live.proc.exists()


def test_both_streams_are_followed_in_the_order_of_the_log(cli: Cli, rootfs: Path) -> None:
    """Each line is seen before the next one is asked for, whichever stream it comes on."""
    script = "echo up; while read -r n; do echo out $n; echo err $n >&2; echo end $n; done"
    start = ("run", "-i", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    starter = cli.start(*start, stdin=subprocess.PIPE)
    assert starter.stdin is not None
    assert starter.stdout is not None
    container_id = starter.stdout.readline().decode().strip()
    follower = cli.start("logs", "--follow", "--merge", container_id)
    assert follower.stdout is not None
    seen = follower.stdout.readline()
    for number in range(200):
        starter.stdin.write(b"%d\n" % number)
        starter.stdin.flush()
        lines = [follower.stdout.readline() for _ in range(3)]
        assert sorted(lines) == [b"%s %d\n" % (word, number) for word in (b"end", b"err", b"out")]
        seen += b"".join(lines)
    starter.stdin.close()
    seen += follower.stdout.read()
    assert (starter.wait(60), follower.wait(60)) == (0, 0)
    assert seen.decode() == cli.ok("logs", "--merge", container_id)


def test_who_joins_the_terminal_of_run_it_is_shown_the_same(cli: Cli, rootfs: Path) -> None:
    """The starter is written to by the supervisor itself, the other one follows the log."""
    first, second = Window(25, 90), Window(25, 90)
    try:
        first.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "sh", "-c", SHELL)
        first.until_line("ready")
        (container_id,) = cli.ids()
        join(second, cli, cli.live(container_id), "--logs")
        for number in range(50):
            window, other = (first, second) if number % 2 else (second, first)
            window.type(f"echo li''ne {number}\r")
            for one in (window, other):
                until_received(one, b"line %d\r\n" % number)
        first.type("exit 3\r")
        assert (second.wait(), first.wait()) == (3, 3)
        assert bytes(first.received) == bytes(second.received) == cli.log(container_id)
    finally:
        first.close()
        second.close()


def test_a_restarted_container_is_followed_through_its_lives(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    live = shell(cli, rootfs, "--restart", "on-failure:1")
    join(window, cli, live, "--logs")
    window.type("exit 5\r")
    until_received(window, b"ready\r\n", 2)
    assert bytes(window.received) == cli.log(live.id)
