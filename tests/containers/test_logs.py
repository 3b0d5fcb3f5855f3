"""`craterun logs`: following, choosing, rotation, removal; against bytes that were written."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.core.instants import parse_instant
from craterun.state.logindex import read_index
from craterun.supervisor.pumps import CHUNK_BYTES
from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import Cli, Gate, read_some, wait_exit
from tests.containers.streams_helpers import (
    digest,
    drain,
    noise,
    parent_of,
    read_until,
    successor_of,
    until,
)

cli = helpers.cli
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]
MUCH = 3_000_000
RUNS = int(os.environ.get("CRATERUN_LOG_RUNS", "200"))
Process = subprocess.Popen[bytes]


def sh(rootfs: Path, script: str, *options: str) -> tuple[str, ...]:
    return (*options, "--rootfs", str(rootfs), "--", "sh", "-c", script)


def out(process: Process) -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


def err(process: Process) -> int:
    assert process.stderr is not None
    return process.stderr.fileno()


def ended(process: Process) -> tuple[int, bytes, bytes]:
    """Exit code and the rest of both outputs."""
    rest = process.communicate(timeout=helpers.PATIENCE_SECONDS)
    return process.returncode, *rest


def stopped(process: Process) -> Process:
    """The same, in state T."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return process


# --- follow ---------------------------------------------------------------------------------------


def test_follow_shows_each_line_when_it_is_written_and_ends_with_the_container(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    go = make_gate(rootfs / "go")
    script = "for i in 1 2 3; do read x </go; echo line $i; done; printf end; echo err >&2"
    live = cli.detach(*sh(rootfs, script))
    process = cli.start("logs", "-f", live.id)
    for number in (1, 2, 3):
        go.open()
        seen = read_until(out(process), b"line %d\n" % number)
    code, rest, errors = ended(process)
    assert (code, seen + rest, errors) == (0, b"line 3\nend", b"err\n")


def test_follow_of_a_container_that_has_written_nothing_and_never_will(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    go = make_gate(rootfs / "go")
    live = cli.detach(*sh(rootfs, "read x </go"))
    process = cli.start("logs", "--follow", live.id)
    go.open()
    assert ended(process) == (0, b"", b"")


@pytest.mark.parametrize("arguments", [("-f",), ("-f", "-t"), ("-f", "--tail", "1")])
def test_follow_of_one_that_has_ended_prints_and_returns(
    cli: Cli, rootfs: Path, arguments: tuple[str, ...]
) -> None:
    found = cli.ok("run", *sh(rootfs, "echo one; printf two")).strip()
    result = cli("logs", *arguments, found)
    lines = [line.split(b" ")[-1] for line in result.stdout.split(b"\n")]
    assert (result.returncode, lines[-1]) == (0, b"two")
    assert lines == ([b"two"] if "--tail" in arguments else [b"one", b"two"])


def test_many_short_runs_are_followed_to_their_ends_every_time(
    state_root: Path, rootfs: Path
) -> None:
    """CRATERUN_LOG_RUNS says how many: begun before, amid or after the end, with --rm or not."""
    state_root.mkdir()
    finished = subprocess.run(
        [sys.executable, "-m", "tests.containers.many_followers", state_root, rootfs, str(RUNS)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60 + RUNS,
    )
    told = json.loads(finished.stdout)
    assert told["problems"] == []
    assert told["seen"]["whole"] > RUNS // 2


def test_an_interrupted_follower_exits_with_130_and_harms_nobody(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    go = make_gate(rootfs / "go")
    live = cli.detach(*sh(rootfs, "echo first; read x </go; echo second"))
    followers = [cli.start("logs", "-f", live.id) for _ in range(2)]
    for process in followers:
        read_until(out(process), b"first\n")
    followers[0].send_signal(signal.SIGINT)
    assert ended(followers[0]) == (130, b"", b"")
    go.open()
    assert ended(followers[1]) == (0, b"second\n", b"")


def test_a_follower_whose_reader_has_left_does_not_wait_for_the_next_line(
    cli: Cli, rootfs: Path
) -> None:
    live = cli.detach(*sh(rootfs, "echo first; exec sleep 1000000"))
    process = cli.start("logs", "-f", live.id)
    read_until(out(process), b"first\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(helpers.PATIENCE_SECONDS) == 141


def test_followers_end_when_supervisor_and_keeper_are_killed(cli: Cli, rootfs: Path) -> None:
    live = cli.detach(*sh(rootfs, "echo first; exec sleep 1000000"))
    process = cli.start("logs", "-f", live.id)
    read_until(out(process), b"first\n")
    keeper = parent_of(live.pid)
    supervisor = parent_of(keeper)
    stopper = (keeper, supervisor)
    for pid in stopper:
        os.kill(pid, signal.SIGSTOP)
    for pid in stopper:
        os.kill(pid, signal.SIGKILL)
    assert ended(process) == (0, b"", b"")
    wait_exit(live.pid)


def test_a_follower_goes_on_when_a_successor_takes_over(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    """Killed while segments are being finished; nothing is in the pipe at that moment."""
    (rootfs / "noise").write_bytes(noise(7, MUCH))
    said, go = make_gate(rootfs / "said"), make_gate(rootfs / "go")
    script = "cat /noise; echo >/said; read x </go; cat /noise; echo end"
    live = cli.detach(*sh(rootfs, script, "--log-max-size", "100k", "--log-max-files", "1000"))
    process = cli.start("logs", "-f", live.id)
    said.wait()
    first = b""
    while len(first) < MUCH:
        first += read_some(out(process))
    keeper = parent_of(live.pid)
    supervisor = parent_of(keeper)
    os.kill(supervisor, signal.SIGKILL)
    wait_exit(supervisor)
    go.open()
    expected = digest(noise(7, MUCH) + b"end\n")
    assert drain(out(process), err(process)) == [expected, digest(b"")]
    assert digest(first) == digest(noise(7, MUCH))
    assert process.wait() == 0


def test_follower_and_log_agree_when_the_writer_is_killed_while_it_writes(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    """What the dead one had read but not written is lost, to both alike: one chunk at most."""
    go = make_gate(rootfs / "go")
    options = ("--log-max-size", "64k", "--log-max-files", "1000")
    live = cli.detach(*sh(rootfs, "read x </go; seq 1000000 4000000", *options))
    supervisor = parent_of(parent_of(live.pid))
    process = cli.start("logs", "-f", live.id)
    go.open()
    seen = read_some(out(process))
    os.kill(supervisor, signal.SIGKILL)
    wait_exit(supervisor)
    seen += read_some(out(process))
    for pid in successors(live.pid):
        os.kill(pid, signal.SIGKILL)
        wait_exit(pid)
    code, rest, errors = ended(process)
    assert (code, errors) == (0, b"")
    seen += rest
    assert digest(cli("logs", live.id).stdout) == digest(seen)
    whole = b"".join(b"%d\n" % number for number in range(1_000_000, 4_000_001))
    assert seen.endswith(b"4000000\n")
    assert len(whole) - 3 * CHUNK_BYTES <= len(seen) <= len(whole)


def successors(pid: int) -> list[int]:
    """The supervisor that took over the container of process ``pid``, if that still runs."""
    try:
        return [successor_of(parent_of(pid))]
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return []


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["logs -f", "run --attach"])
def test_nothing_is_lost_when_files_rotate_under_a_reader(
    cli: Cli, rootfs: Path, how: str, make_gate: MakeGate
) -> None:
    (rootfs / "noise").write_bytes(noise(3, MUCH))
    go = make_gate(rootfs / "go")
    script = (
        "read x </go; for bs in 1000 7777 70000 300000; do dd if=/noise bs=$bs 2>/dev/null; "
        "dd if=/noise bs=$bs count=9 >&2 2>/dev/null; done"
    )
    options = ("--log-max-size", "50000", "--log-max-files", "100000")
    if how == "logs -f":
        live = cli.detach(*sh(rootfs, script, *options))
        process = cli.start("logs", "-f", live.id)
    else:
        process = cli.start("run", "--attach", *sh(rootfs, script, *options))
    go.open()
    errors = b"".join(noise(3, MUCH)[: bs * 9] for bs in (1000, 7777, 70000, 300000))
    expected = [digest(noise(3, MUCH) * 4), digest(errors)]
    assert drain(out(process), err(process)) == expected
    assert process.wait() == 0
    (found,) = cli.ids()
    directory = cli.state_root / found
    assert max(path.stat().st_size for path in directory.iterdir()) <= 50000
    result = cli("logs", found)
    assert [digest(result.stdout), digest(result.stderr)] == expected


def test_a_log_is_bounded_and_its_last_bytes_are_kept(cli: Cli, rootfs: Path) -> None:
    (rootfs / "noise").write_bytes(noise(4, MUCH))
    options = ("--log-max-size", "64k", "--log-max-files", "2")
    found = cli.ok("run", *sh(rootfs, "cat /noise; echo end", *options)).strip()
    sizes = [path.stat().st_size for path in (cli.state_root / found).glob("stdout.log*")]
    assert sum(sizes) <= 2 * 64 * 1024
    result = cli("logs", found)
    assert len(result.stdout) == sum(sizes)
    assert (noise(4, MUCH) + b"end\n").endswith(result.stdout)
    assert cli.record(found)["log"] == {"driver": "file", "max_bytes": 65536, "max_files": 2}


@pytest.mark.parametrize("how", ["logs -f", "run --attach"])
def test_a_reader_that_is_overtaken_is_told_how_much_it_missed(
    cli: Cli, rootfs: Path, how: str, make_gate: MakeGate
) -> None:
    (rootfs / "noise").write_bytes(noise(5, MUCH))
    go = make_gate(rootfs / "go")
    script = "echo first; read x </go; cat /noise; echo last"
    options = ("--log-max-size", "64k", "--log-max-files", "1")
    if how == "logs -f":
        live = cli.detach(*sh(rootfs, script, *options))
        process = cli.start("logs", "-f", live.id)
        read_until(out(process), b"first\n")
        stopped(process)
        go.open()
        cli.ok("wait", live.id)
        process.send_signal(signal.SIGCONT)
    else:
        process = cli.start("run", "--attach", *sh(rootfs, script, *options))
        read_until(out(process), b"first\n")
        go.open()
        (found,) = cli.ids()
        # Nobody reads, and the container writes all it has, all the same.
        until(cli.state_root / found, lambda: ends_with_last(cli.state_root / found))
    code, rest, complaint = ended(process)
    (missed,) = re.findall(rb"(\d+) bytes", complaint)
    assert code == 0
    assert len(rest) + int(missed) == MUCH + len(b"last\n")
    assert rest.endswith(b"last\n")


def ends_with_last(directory: Path) -> bool:
    """Whether the log, which may be amid a rotation, has come to its last line."""
    try:
        return (directory / "stdout.log").read_bytes().endswith(b"last\n")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "options",
    [
        ("--log-max-size", "1k"), ("--log-max-size", "-1"), ("--log-max-size", "much"),
        ("--log-max-files", "0"), ("--log-driver", "none", "--log-max-files", "3"),
        ("--log-driver", "syslog"),
    ],
)  # fmt: skip
def test_malformed_bounds_are_refused(cli: Cli, rootfs: Path, options: tuple[str, ...]) -> None:
    message = cli.refused("run", *options, "--rootfs", str(rootfs), "--", "true")
    assert options[0] in message or "bytes" in message or "log files" in message
    assert not cli.ids()


@pytest.mark.parametrize("size", ["0", "max", "unlimited"])
def test_a_log_without_bound_is_one_file(cli: Cli, rootfs: Path, size: str) -> None:
    script = "head -c 300000 /dev/zero"
    found = cli.ok("run", *sh(rootfs, script, "--log-max-size", size)).strip()
    assert sorted(os.listdir(cli.state_root / found)) == [
        "log.index", "metadata.json", "stderr.log", "stdout.log"
    ]  # fmt: skip


# --- no log ---------------------------------------------------------------------------------------


def test_without_a_log_attached_readers_still_get_everything(cli: Cli, rootfs: Path) -> None:
    (rootfs / "noise").write_bytes(noise(6, MUCH))
    script = "cat /noise; cat /noise >&2; printf end"
    process = cli.start("run", "--attach", *sh(rootfs, script, "--log-driver", "none"))
    assert drain(out(process), err(process), read_bytes=5000) == [
        digest(noise(6, MUCH) + b"end"), digest(noise(6, MUCH))
    ]  # fmt: skip
    assert process.wait() == 0
    (found,) = cli.ids()
    assert os.listdir(cli.state_root / found) == ["metadata.json"]
    assert "keeps no log" in cli.refused("logs", found)


def test_without_log_and_reader_a_container_writes_into_the_void(cli: Cli, rootfs: Path) -> None:
    script = "head -c 3000000 /dev/zero; exit 4"
    result = cli("run", *sh(rootfs, script, "--log-driver", "none"))
    assert (result.returncode, result.stderr) == (4, b"")


# --- removal --------------------------------------------------------------------------------------


def test_a_follower_reads_to_the_end_what_removed_itself_meanwhile(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    """stderr.log and the later segments did not exist yet when it was stopped."""
    (rootfs / "noise").write_bytes(noise(8, MUCH))
    go = make_gate(rootfs / "go")
    script = "echo first; read x </go; cat /noise; echo err >&2; printf last"
    options = ("--rm", "--log-max-size", "100k", "--log-max-files", "1000")
    live = cli.detach(*sh(rootfs, script, *options))
    process = cli.start("logs", "-f", live.id)
    read_until(out(process), b"first\n")
    stopped(process)
    go.open()
    cli.ok("wait", live.id)
    assert cli.ids() == set()
    assert cli.ok("ps", "-q") == ""
    assert (cli.state_root / ".trash" / live.id).is_dir()
    cli.refused("logs", live.id)
    process.send_signal(signal.SIGCONT)
    assert drain(out(process), err(process)) == [digest(noise(8, MUCH) + b"last"), digest(b"err\n")]
    assert process.wait() == 0
    assert not (cli.state_root / ".trash").exists()


def test_what_a_killed_follower_left_goes_with_the_next_removal(cli: Cli, rootfs: Path) -> None:
    live = cli.detach(*sh(rootfs, "echo first; exec sleep 1000000"))
    followers = [cli.start("logs", "-f", live.id) for _ in range(2)]
    for process in followers:
        read_until(out(process), b"first\n")
        stopped(process)
    cli.ok("rm", "--force", live.id)
    trash = cli.state_root / ".trash"
    assert os.listdir(trash) == [live.id]
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "true")
    assert os.listdir(trash) == [live.id], "somebody reads it"
    for process in followers:
        process.kill()
        process.wait()
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "true")
    assert not trash.exists()


# --- choosing -------------------------------------------------------------------------------------


@pytest.fixture
def mixed(cli: Cli, rootfs: Path, make_gate: MakeGate) -> str:
    """Lines in a known order: each is in the log before the next one is written."""
    said = make_gate(rootfs / "said")
    step = "sync() { read x </go; }; "
    go = make_gate(rootfs / "go")
    script = step + "echo o1; sync; echo e1 >&2; sync; echo o2; sync; echo e2 >&2; sync; printf o3"
    live = cli.detach(*sh(rootfs, script))
    directory = cli.state_root / live.id

    def entries() -> int:
        index = directory / "log.index"
        return len(list(read_index(str(index)))) if index.exists() else 0

    for number in range(1, 5):
        until(directory, lambda number=number: entries() == number)  # type: ignore[misc]
        go.open()
    cli.ok("wait", live.id)
    del said
    return live.id


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        ((), "o1\no2\no3", "e1\ne2\n"),
        (("--merge",), "o1\ne1\no2\ne2\no3", ""),
        (("--tail", "2", "--merge"), "e2\no3", ""),
        (("--tail", "3"), "o2\no3", "e2\n"),
        (("-n", "0"), "", ""),
        (("-n", "all", "--stream", "stderr"), "", "e1\ne2\n"),
        (("-n", "1", "--stream", "stdout"), "o3", ""),
        (("--stream", "stderr", "--merge"), "e1\ne2\n", ""),
        (("--since", "1h",), "o1\no2\no3", "e1\ne2\n"),
        (("--until", "1h",), "", ""),
        (("--since", "2100-01-01",), "", ""),
        (("--since", "1h", "--tail", "1"), "o3", ""),
    ],
)  # fmt: skip
def test_options_choose(
    cli: Cli, mixed: str, options: tuple[str, ...], stdout: str, stderr: str
) -> None:
    result = cli("logs", *options, mixed)
    assert (result.returncode, result.stdout.decode(), result.stderr.decode()) == (
        0, stdout, stderr
    )  # fmt: skip


def test_times_are_those_of_the_index_and_since_takes_them_back(cli: Cli, mixed: str) -> None:
    index = list(read_index(str(cli.state_root / mixed / "log.index")))
    lines = cli.ok("logs", "-t", "--merge", mixed).split("\n")
    assert [line.split()[1] for line in lines] == ["o1", "e1", "o2", "e2", "o3"]
    stamps = [line.split()[0] for line in lines]
    assert [parse_instant(stamp, 0) for stamp in stamps] == [entry.time_ns for entry in index]
    assert cli.ok("logs", "--merge", "--since", stamps[2], mixed) == "o2\ne2\no3"
    assert cli.ok("logs", "--merge", "--until", stamps[2], mixed) == "o1\ne1\n"
    between = ("--since", stamps[1], "--until", stamps[3])
    assert cli.ok("logs", "--merge", *between, mixed) == "e1\no2\n"
    assert cli.ok("logs", "--merge", *between, "--tail", "1", mixed) == "o2\n"
    assert cli.ok("logs", "-f", "--merge", *between, mixed) == "e1\no2\n"


def test_follow_until_a_time_returns_then(cli: Cli, rootfs: Path) -> None:
    live = cli.detach(*sh(rootfs, "echo first; exec sleep 1000000"))
    process = cli.start("logs", "-f", live.id)
    read_until(out(process), b"first\n")
    (entry,) = read_index(str(cli.state_root / live.id / "log.index"))
    seconds = entry.time_ns // 10**9 + 1
    assert cli.ok("logs", "-f", "--until", str(seconds), live.id) == "first\n"


def test_several_containers_have_a_prefix_and_whole_lines(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", *sh(rootfs, "echo a1; printf a2", "--name", "a"))
    cli.ok("run", *sh(rootfs, "echo b1; echo b2 >&2", "--name", "long"))
    result = cli("logs", "a", "long")
    assert result.stdout == b"a    | a1\na    | a2\nlong | b1\n"
    assert result.stderr == b"long | b2\n"
    result = cli("logs", "a", "nobody")
    assert (result.returncode, result.stdout) == (125, b"a      | a1\na      | a2")
    assert b"no container 'nobody'" in result.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_prefixes_are_coloured_on_a_terminal_unless_unwanted(
    cli: Cli, rootfs: Path, colour: bool
) -> None:
    for name in ("a", "b"):
        cli.ok("run", *sh(rootfs, f"echo {name}1", "--name", name))
    master, slave = pty.openpty()
    env = cli_environment(cli.state_root, {"TERM": "xterm", "NO_COLOR": "" if colour else "1"})
    subprocess.run(cli.command("logs", "a", "b"), stdout=slave, env=env, check=True)
    os.close(slave)
    shown = os.read(master, 1000)
    os.close(master)
    plain = b"a | a1\r\nb | b1\r\n"
    assert re.sub(rb"\x1b\[\d*m", b"", shown) == plain
    assert (shown != plain) == colour


def test_following_several_ends_with_the_last(cli: Cli, rootfs: Path, make_gate: MakeGate) -> None:
    gates = {name: make_gate(rootfs / name) for name in ("a", "b")}
    for name in gates:
        cli.detach(*sh(rootfs, f"echo {name}1; read x </{name}; printf {name}2", "--name", name))
    process = cli.start("logs", "-f", "a", "b")
    seen = read_until(out(process), b"1\n")
    if seen.count(b"\n") < 2:
        seen += read_until(out(process), b"1\n")
    assert sorted(seen.splitlines()) == [b"a | a1", b"b | b1"]
    gates["b"].open()
    read_until(out(process), b"b | b2")
    gates["a"].open()
    assert ended(process) == (0, b"\na | a2", b"")


@pytest.mark.parametrize("options", [("--tail", "-1"), ("--tail", "x"), ("--since", "yesterday")])
def test_malformed_choices_are_refused(cli: Cli, mixed: str, options: tuple[str, ...]) -> None:
    assert options[1] in cli.refused("logs", *options, mixed)


def test_the_tail_of_a_huge_log_reads_little(cli: Cli, rootfs: Path) -> None:
    found = cli.ok("run", *sh(rootfs, "echo x")).strip()
    with (cli.state_root / found / "stdout.log").open("r+b") as file:
        file.seek(5 * 1024**3)
        file.write(b"\nlast but one\nlast\n")
    code = (
        "import sys, craterun.cli.logs as logs; io = lambda: int(open('/proc/self/io').read()"
        ".split()[1]); before = io(); logs.logs(sys.argv[1], tail='2'); "
        "print(io() - before, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, found],
        env=cli_environment(cli.state_root),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"last but one\nlast\n"
    assert int(done.stderr) < 3_000_000
