"""attach: any number of terminals join a container, leave it and come back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli, Live
from tests.containers.screens import Window

cli = helpers.cli
MakeWindow = Callable[[], Window]
LEAVE = "\x10\x11"
KEYS = ("--detach-keys", "ctrl-p,ctrl-q")
SHELL = 'echo ready; while read -r line; do eval "$line"; done'
"""Without a prompt and an editor of lines, which asks terminals where their cursor is."""


@pytest.fixture
def make_window() -> Iterator[MakeWindow]:
    """Opens terminals."""
    windows: list[Window] = []

    def make() -> Window:
        windows.append(Window(25, 90))
        return windows[-1]

    yield make
    for window in windows:
        window.close()


@pytest.fixture
def shell(cli: Cli, rootfs: Path) -> Live:
    """A shell with a terminal, in the background."""
    return cli.detach("-t", "--rootfs", str(rootfs), "--", "sh", "-c", SHELL)


def join(window: Window, cli: Cli, live: Live, *options: str) -> None:
    """Attach, and see that keys arrive."""
    window.run(cli, "attach", *options, live.id)
    window.until(lambda _: window.is_raw())
    window.type("echo jo''ined\r")
    window.until_line("joined")


def test_keys_and_output_pass_and_the_exit_code_is_the_containers(
    make_window: MakeWindow, cli: Cli, shell: Live
) -> None:
    window = make_window()
    join(window, cli, shell)
    window.type("stty size; exit 33\r")
    assert window.wait() == 33
    assert b"25 90" in window.received
    assert window.is_as_before()


def test_all_who_are_attached_see_the_same(make_window: MakeWindow, cli: Cli, shell: Live) -> None:
    one, other = make_window(), make_window()
    join(one, cli, shell)
    join(other, cli, shell)
    one.type("echo from ''one\r")
    other.until_line("from one")
    one.until_line("from one")
    other.type("echo from ''other; exit 0\r")
    assert (one.wait(), other.wait()) == (0, 0)
    assert b"\r\nfrom other\r\n" in one.received
    assert b"\r\nfrom other\r\n" in other.received


def test_who_leaves_by_keys_finds_all_again(make_window: MakeWindow, cli: Cli, shell: Live) -> None:
    first, second = make_window(), make_window()
    join(first, cli, shell, *KEYS)
    first.type("echo before\r")
    first.until_line("before")
    first.type(LEAVE)
    assert first.wait() == 0
    assert first.is_as_before()
    assert f"detached from {shell.id}" in "\n".join(first.lines)
    assert shell.proc.exists()
    cli.ok("exec", shell.id, "--", "sh", "-c", "echo meanwhile >/dev/pts/0")
    join(second, cli, shell, "--logs")
    second.type("exit 4\r")
    assert second.wait() == 4
    # No gap and no doubling at the seam.
    assert bytes(second.received) == cli.log(shell.id)
    assert cli.log(shell.id).count(b"meanwhile") == 1


def test_keys_that_only_begin_like_the_detach_keys_arrive(
    make_window: MakeWindow, cli: Cli, rootfs: Path
) -> None:
    script = "stty raw -echo; echo ready; head -c 4 | od -An -v -tx1"
    options = ("-it", "--rootfs", str(rootfs), *KEYS)
    window = make_window()
    window.run(cli, "run", *options, "--", "busybox", "sh", "-c", script)
    window.until_line("ready")
    window.type("\x10x\x10\x10")
    window.type("\x11")
    assert window.wait() == 0, "left, with one key held back"
    (container_id,) = cli.ids()
    again = make_window()
    again.run(cli, "attach", container_id)
    again.until(lambda _: again.is_raw())
    again.type("y")
    assert again.wait() == 0
    assert b"10 78 10 79" in cli.log(container_id)


def test_a_container_can_be_left_and_its_screen_is_there_again(
    make_window: MakeWindow, cli: Cli, rootfs: Path
) -> None:
    (rootfs / "etc/text").write_text("".join(f"line {n}\n" for n in range(100)))
    first, second = make_window(), make_window()
    options = ("-it", "--rootfs", str(rootfs), *KEYS)
    first.run(cli, "run", *options, "--", "busybox", "vi", "/etc/text")
    first.until(lambda lines: lines[0] == "line 0" and lines[23] == "line 23")
    first.type("40G")
    seen = first.until(lambda lines: "line 39" in lines and "line 60" not in lines)
    first.type(LEAVE)
    assert first.wait() == 0
    assert first.is_as_before()
    (container_id,) = cli.ids()
    second.run(cli, "attach", container_id)
    assert second.until(lambda lines: lines[:23] == seen[:23])
    second.type(":q\r")
    assert second.wait() == 0


def test_a_killed_client_harms_nobody(make_window: MakeWindow, cli: Cli, shell: Live) -> None:
    one, other = make_window(), make_window()
    join(one, cli, shell)
    join(other, cli, shell)
    assert one.process is not None
    one.process.kill()
    one.process.wait()
    other.type("echo still ''here; exit 6\r")
    assert other.wait() == 6
    assert b"still here" in other.received


def test_who_only_watches_types_nothing(make_window: MakeWindow, cli: Cli, shell: Live) -> None:
    watcher, worker = make_window(), make_window()
    process = watcher.run(cli, "attach", "--no-stdin", "--logs", shell.id)
    watcher.until_line("ready")
    assert watcher.is_as_before()
    watcher.type("exit 9\r")
    join(worker, cli, shell)
    watcher.until_line("joined")
    worker.type("exit 8\r")
    assert worker.wait() == 8
    assert watcher.wait() == 8
    assert process.returncode == 8


def test_without_a_terminal_both_streams_are_shown_apart(cli: Cli, rootfs: Path) -> None:
    script = "trap 'echo out; echo err >&2; exit 7' USR1; echo up; while :; do sleep 9 & wait; done"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    process = cli.start("attach", "--logs", live.id)
    assert helpers.read_line(process) == "up"
    process.send_signal(signal.SIGUSR1)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (7, b"out\n", b"err\n")


def test_a_client_that_forwards_nothing_takes_its_signals_itself(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", "echo up; sleep 1000000")
    process = cli.start("attach", "--logs", "--sig-proxy=false", live.id)
    assert helpers.read_line(process) == "up"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert live.proc.exists()


def test_what_does_not_run_cannot_be_joined(cli: Cli, rootfs: Path) -> None:
    assert cli("run", "--name", "old", "--rootfs", str(rootfs), "--", "true").returncode == 0
    assert "is not running" in cli.refused("attach", "old")
    assert "no container 'nosuch'" in cli.refused("attach", "nosuch")


@pytest.mark.parametrize("keys", ["ctrl-", "ctrl-5", "ab", ",", "ü", "ctrl-p,,ctrl-q"])
def test_keys_that_do_not_exist_are_refused(keys: str, cli: Cli, rootfs: Path) -> None:
    message = cli.refused(
        "run", "-it", "--rootfs", str(rootfs), "--detach-keys", keys, "--", "true"
    )
    assert "--detach-keys" in message
    assert cli.ids() == set()


def test_a_successor_lets_people_in_as_well(
    make_window: MakeWindow, cli: Cli, rootfs: Path
) -> None:
    first, second = make_window(), make_window()
    first.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "sh", "-c", SHELL)
    first.until_line("ready")
    (container_id,) = cli.ids()
    live = cli.live(container_id)
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    # Once this is in the log, the successor is there.
    cli.ok("exec", container_id, "--", "sh", "-c", "echo later >/dev/pts/0")
    while b"later" not in cli.log(container_id):
        pass
    join(second, cli, live)
    second.type("exit 12\r")
    assert second.wait() == 12


def test_others_type_into_the_pipe_of_run_i_and_its_end_is_that_of_the_last(
    cli: Cli, rootfs: Path
) -> None:
    """Whoever started it has come to an end first."""
    starter = cli.start("run", "-i", "-a", "--rootfs", str(rootfs), "--", "cat", stdin=PIPE)
    assert starter.stdin is not None
    assert starter.stdout is not None
    starter.stdin.write(b"from one\n")
    starter.stdin.flush()
    assert starter.stdout.readline() == b"from one\n"
    (container_id,) = cli.ids()
    other = cli.start("attach", container_id, stdin=PIPE)
    assert other.stdin is not None
    other.stdin.write(b"from other\n")
    other.stdin.flush()
    assert starter.stdout.readline() == b"from other\n"
    starter.stdin.close()
    other.stdin.write(b"and once more\n")
    other.stdin.flush()
    assert starter.stdout.readline() == b"and once more\n"
    other.stdin.close()
    assert (other.wait(60), starter.wait(60)) == (0, 0)
    assert cli.log(container_id) == b"from one\nfrom other\nand once more\n"


def test_when_the_input_has_ended_there_is_only_watching(cli: Cli, rootfs: Path) -> None:
    options = ("-i", "-a", "--rootfs", str(rootfs))
    script = "cat; echo over; exec sleep 1000000"
    starter = cli.start("run", *options, "--", "sh", "-c", script, stdin=PIPE)
    assert starter.stdin is not None
    assert starter.stdout is not None
    starter.stdin.close()
    assert starter.stdout.readline() == b"over\n"
    (container_id,) = cli.ids()
    watcher = cli.start("attach", "--logs", container_id, stdin=PIPE)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"over\n"
    cli.ok("kill", container_id)
    assert (watcher.wait(60), starter.wait(60)) == (137, 137)
    assert watcher.stderr is not None
    assert b"has ended: what is typed stays here" in watcher.stderr.read()
