"""run -t and exec -t: a terminal inside, ours in raw mode, and as it was afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli, wait_exit
from tests.containers.screens import Window

cli = helpers.cli
PROMPT = "PS1='> ' exec sh -i"


@pytest.fixture
def window() -> Iterator[Window]:
    """A terminal of 30 rows and 100 columns."""
    made = Window(30, 100)
    yield made
    made.close()


def shell(window: Window, cli: Cli, rootfs: Path, *options: str) -> None:
    """A shell in a new container, at its first prompt."""
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), *options, "--", "sh", "-c", PROMPT)
    window.until(lambda lines: ">" in lines)


def at_prompt(lines: list[str]) -> bool:
    return [line for line in lines if line][-1] == ">"


# --- what is inside -------------------------------------------------------------------------------


def test_the_command_has_a_terminal_of_its_own_and_its_size_from_the_start(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    script = "stty size; tty; echo $TERM; readlink -f /dev/stdin; readlink -f /dev/stderr"
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", script)
    assert window.wait() == 0
    text = window.received.decode()
    assert text.startswith("30 100\r\n/dev/pts/0\r\nlinux\r\n")
    assert text.endswith("/dev/pts/0\r\n/dev/pts/0\r\n")


def test_the_terminal_is_the_controlling_one_and_belongs_to_the_user(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    script = "stat -c %U:%a /dev/pts/0; echo one >/dev/tty; echo two >/dev/stdout; ps -o pid,tty"
    options = ("-it", "--user", "alice", "--rootfs", str(rootfs))
    window.run(cli, "run", *options, "--", "busybox", "sh", "-c", script)
    assert window.wait() == 0
    assert window.received.decode().splitlines()[:3] == ["alice:620", "one", "two"]
    assert b"136,0" in window.received


def test_nothing_of_our_own_terminal_is_reachable_inside(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "sh", "-c", "echo up; cat; exit 3")
    window.until_line("up")
    ours = os.ttyname(window.side)
    (container_id,) = cli.ids()
    live = cli.live(container_id)
    targets = set(live.descriptors().values())
    assert targets == {"/dev/pts/0"}
    assert os.stat(live.root("dev/pts/0")).st_dev != os.stat(ours).st_dev
    window.type("\x04")
    assert window.wait() == 3


def test_output_of_the_terminal_is_logged_as_it_came(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    script = "printf '\\033[31mred\\033[0m\\n'; echo error >&2"
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert window.wait() == 0
    (container_id,) = cli.ids()
    assert cli.log(container_id) == b"\x1b[31mred\x1b[0m\r\nerror\r\n"
    assert cli.log(container_id) == bytes(window.received)
    assert cli.log(container_id, "stderr") == b""
    assert cli.record(container_id)["terminal"] is True


# --- keys -----------------------------------------------------------------------------------------


def test_keys_reach_the_foreground_job_inside_and_not_us(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    shell(window, cli, rootfs)
    assert window.is_raw()
    # The inner shell says that it is ready: the outer one waits for it by then, or will. A signal
    # between a shell's last look at its traps and its wait for a command would be left pending.
    inner = "echo ready; exec sleep 1000"
    window.type(f'sh -c \'trap "echo got INT" INT; sh -c "{inner}"\'\r')
    window.until_line("ready")
    window.type("\x03")
    window.until_line("^Cgot INT")
    window.until(at_prompt)
    window.type("sh -c 'echo waiting; sleep 1000'\r")
    window.until_line("waiting")
    window.type("\x1a")
    window.until(lambda lines: any("Stopped" in line for line in lines))
    window.until(at_prompt)
    window.type("kill %1; fg\r")
    window.until(at_prompt)
    window.type("exit 42\r")
    assert window.wait() == 42
    assert window.is_as_before()


def test_a_full_screen_editor_works(window: Window, cli: Cli, rootfs: Path) -> None:
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "busybox", "vi", "/tmp/file")
    window.until(lambda lines: lines[1] == "~" and lines[28] == "~" and "/tmp/file" in lines[29])
    window.type("ihello\rworld\x1b")
    window.until(lambda lines: lines[:3] == ["hello", "world", "~"])
    window.type(":wq\r")
    assert window.wait() == 0
    assert (rootfs / "tmp/file").read_text() == "hello\nworld\n"
    assert window.is_as_before()


def test_a_new_size_of_the_window_arrives_inside(window: Window, cli: Cli, rootfs: Path) -> None:
    script = "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 1000 & wait $!; done"
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", script)
    window.until_line("ready")
    window.resize(50, 132)
    assert window.wait() == 5
    assert b"50 132" in window.received


def test_bytes_of_any_value_pass_both_ways(window: Window, cli: Cli, rootfs: Path) -> None:
    script = "stty raw -echo; echo ready; head -c 256 | od -An -v -tx1; exit 0"
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", script)
    window.until_line("ready")
    window.type(bytes(range(256)))
    assert window.wait() == 0
    digits = bytes(window.received).split(b"ready")[1]
    assert bytes.fromhex(digits.decode()) == bytes(range(256))


# --- our terminal afterwards ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_our_terminal_is_itself_again_after_a_signal(
    number: signal.Signals, window: Window, cli: Cli, rootfs: Path
) -> None:
    script = f"trap 'exit 9' {number.name[3:]}; echo ready; while :; do sleep 1000 & wait $!; done"
    process = window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    window.until_line("ready")
    assert window.is_raw()
    process.send_signal(number)
    assert window.wait() == 9
    assert window.is_as_before()


def test_our_terminal_is_itself_again_after_the_keeper_was_killed(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    shell(window, cli, rootfs)
    (container_id,) = cli.ids()
    keeper = int(cli.live(container_id).status()["PPid"])
    os.kill(keeper, signal.SIGKILL)
    assert window.wait() != 0
    assert window.is_as_before()


def test_a_refused_start_leaves_our_terminal_alone(window: Window, cli: Cli, rootfs: Path) -> None:
    window.run(cli, "run", "-it", "--rootfs", str(rootfs), "--", "nosuch")
    assert window.wait() == 127
    assert window.is_as_before()
    assert b"not found" in window.received


def test_without_interactive_keys_stay_with_us(window: Window, cli: Cli, rootfs: Path) -> None:
    script = "echo ready; sleep 1000"
    window.run(cli, "run", "-t", "--init", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    window.until_line("ready")
    assert window.is_as_before()
    window.type("\x03")
    assert window.wait() == 130


# --- without a terminal of our own ----------------------------------------------------------------


def test_scripts_get_a_terminal_inside_too(cli: Cli, rootfs: Path) -> None:
    command = ("run", "-t", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", "tty; stty size")
    finished = cli(*command)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == b"/dev/pts/0\r\n24 80\r\n"


@pytest.mark.parametrize(
    ("typed", "read"), [(b"one\ntwo", b"one\ntwo"), (b"", b""), (b"x\n", b"x\n")]
)
def test_a_piped_input_is_typed_and_ends(typed: bytes, read: bytes, cli: Cli, rootfs: Path) -> None:
    script = "stty -echo; echo ready; cat >/tmp/typed"
    command = ("run", "-it", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", script)
    finished = cli(*command, stdin=typed)
    assert finished.returncode == 0
    assert (rootfs / "tmp/typed").read_bytes() == read


# --- detached, and exec ---------------------------------------------------------------------------


def test_a_detached_container_keeps_its_terminal(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("-t", "--rootfs", str(rootfs), "--", "sh", "-c", "tty; sleep 1000000")
    assert set(live.descriptors().values()) == {"/dev/pts/0"}


def test_output_after_the_terminal_was_closed_for_a_while_is_not_lost(
    cli: Cli, rootfs: Path
) -> None:
    # Nobody inside has the terminal open for a moment: for its master that looks like an end.
    script = (
        "echo one; exec </dev/null >/dev/null 2>&1; sleep 0.2; exec >/dev/pts/0; echo two; exit 4"
    )
    finished = cli("run", "-t", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert (finished.returncode, finished.stdout) == (4, b"one\r\ntwo\r\n")


@pytest.mark.parametrize("size", [2**k + d for k in (10, 12, 16, 20) for d in (-1, 1)])
def test_all_output_up_to_the_exit_arrives(size: int, cli: Cli, rootfs: Path) -> None:
    script = f"stty raw; head -c {size} /dev/zero | tr '\\0' x"
    finished = cli("run", "-t", "--rootfs", str(rootfs), "--", "busybox", "sh", "-c", script)
    assert finished.stdout == b"x" * size
    (container_id,) = cli.ids()
    assert cli.log(container_id) == finished.stdout


def test_a_further_command_gets_a_terminal_of_its_own(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    live = cli.detach("-t", "--rootfs", str(rootfs), "--", *helpers.SLEEP)
    script = (
        "stty size; tty; trap 'stty size; exit 11' WINCH; echo up; while :; do sleep 9 & wait; done"
    )
    window.run(cli, "exec", "-it", live.id, "--", "busybox", "sh", "-c", script)
    window.until_line("up")
    assert window.lines[:2] == ["30 100", "/dev/pts/1"]
    assert window.is_raw()
    window.resize(40, 90)
    assert window.wait() == 11
    assert b"40 90" in window.received
    assert window.is_as_before()


def test_a_further_command_ends_with_its_client(window: Window, cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *helpers.SLEEP)
    process = window.run(cli, "exec", "-it", live.id, "--", "sh", "-c", "echo ready; sleep 1000")
    window.until_line("ready")
    others = [other.pid for other in live.siblings() if other.pid != live.pid]
    assert others
    process.kill()
    for pid in others:
        wait_exit(pid)
    assert live.proc.exists()


def test_a_killed_client_leaves_the_container_with_its_terminal(
    window: Window, cli: Cli, rootfs: Path
) -> None:
    shell(window, cli, rootfs)
    (container_id,) = cli.ids()
    live = cli.live(container_id)
    assert window.process is not None
    window.process.kill()
    window.process.wait()
    # The keeper starts another supervisor, which holds the terminal and logs on.
    finished = cli("exec", container_id, "--", "sh", "-c", "echo later >/dev/pts/0")
    assert finished.returncode == 0
    cli.ok("kill", container_id)
    wait_exit(live.pid)
    cli.ok("wait", container_id)
    assert cli.log(container_id).endswith(b"later\r\n")


def test_many_terminals_at_once(make_rootfs: Callable[[str], Path], cli: Cli) -> None:
    root = make_rootfs("many")
    processes = [
        cli.start("run", "-t", "--rootfs", str(root), "--", "busybox", "sh", "-c", f"tty; echo {n}")
        for n in range(8)
    ]
    for number, process in enumerate(processes):
        out, errors = process.communicate(timeout=120)
        assert (out, errors) == (b"/dev/pts/0\r\n%d\r\n" % number, b"")
