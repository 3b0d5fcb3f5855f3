"""`craterun logs`: following and removal; against bytes that were written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.supervisor.express import CHUNK_BYTES
from tests.containers import helpers
from tests.containers.helpers import Cli, Gate, read_some, wait_exit
from tests.containers.logs_helpers import MUCH, ended, err, out, sh, stopped
from tests.containers.streams_helpers import (
    digest,
    drain,
    noise,
    parent_of,
    read_until,
    successor_of,
)

cli = helpers.cli
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]
RUNS = int(os.environ.get("CRATERUN_LOG_RUNS", "200"))


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
    state_root.mkdir(exist_ok=True)
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


@pytest.mark.no_server
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


@pytest.mark.no_server
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


@pytest.mark.no_server
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


@pytest.mark.no_server
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
