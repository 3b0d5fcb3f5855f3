"""run --restart: a container that ends is started again, until somebody wants its end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import craterun
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, lines_of, read_line
from tests.containers.streams_helpers import cgroups_of

cli = helpers.cli

COUNT = (
    "echo x >>/tmp/lives; echo life; test $(wc -l </tmp/lives) -ge {} && exec sleep 1000000; exit 3"
)
"""Ends with 3 until its Nth life, which goes on."""


def detach(cli: Cli, rootfs: Path, script: str, *options: str) -> str:
    arguments = ("--restart", "always", *options, "--rootfs", str(rootfs), "--", "sh", "-c", script)
    return cli.ok("run", "--detach", *arguments).strip()


def until_event(cli: Cli, kind: str, wanted: Callable[[str], bool] = bool) -> None:
    """Until an event of this kind has come, or was there before."""
    process = cli.start("events", "--follow", "--since", "0", "--filter", f"type={kind}")
    while not wanted(read_line(process)):
        pass
    process.terminate()
    process.wait()


def test_a_failure_is_tried_again_as_often_as_asked(cli: Cli, rootfs: Path) -> None:
    options = ("--restart", "on-failure:2", "--rootfs", str(rootfs))
    finished = cli("run", "-a", *options, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert finished.returncode == 3
    assert (finished.stdout, finished.stderr) == (b"out\n" * 3, b"err\n" * 3)
    (container_id,) = cli.ids()
    assert cli.log(container_id) == b"out\n" * 3
    record = cli.record(container_id)
    assert (record["status"], record["restarts"], record["exit_code"]) == ("stopped", 2, 3)
    assert cgroups_of(container_id) == []
    assert "stopped (3), restarted 2x" in cli.ok("ps")
    events = [line.split()[1] for line in cli.ok("events").splitlines()]
    assert events == ["created", "started", "restarted", "restarted", "exited"]


def test_a_success_is_none(cli: Cli, rootfs: Path) -> None:
    options = ("--restart", "on-failure", "--rootfs", str(rootfs))
    assert cli("run", "-a", *options, "--", "echo", "once").stdout == b"once\n"
    (container_id,) = cli.ids()
    assert cli.record(container_id)["restarts"] == 0


def test_each_life_has_the_limits_and_isolation_of_the_first(cli: Cli, rootfs: Path) -> None:
    container_id = detach(cli, rootfs, COUNT.format(2), "--pids", "17", "--init")
    until_event(cli, "restarted")
    pid = int(str(cli.record(container_id)["pid"]))
    path = next(p for p in cgroups_of(container_id) if Path(p, "pids.max").exists())
    assert Path(path, "pids.max").read_text() == "17\n"
    assert str(pid) in Path(path, "cgroup.procs").read_text().split()
    assert os.readlink(f"/proc/{pid}/ns/pid_for_children") != os.readlink("/proc/self/ns/pid")
    cli.ok("rm", "--force", container_id)
    assert cgroups_of(container_id) == []


def test_followers_stay_from_life_to_life(cli: Cli, rootfs: Path) -> None:
    container_id = detach(cli, rootfs, COUNT.format(3))
    follower = cli.start("logs", "--follow", container_id)
    lines = lines_of(follower)
    assert [next(lines) for _ in range(3)] == ["life"] * 3
    assert follower.poll() is None
    cli.ok("kill", container_id)
    assert follower.wait(60) == 0


@pytest.mark.parametrize("how", [("stop", "--time", "0"), ("kill",), ("rm", "--force")])
def test_whoever_ends_it_ends_it_for_good(cli: Cli, rootfs: Path, how: tuple[str, ...]) -> None:
    container_id = detach(cli, rootfs, COUNT.format(2))
    until_event(cli, "restarted")
    cli.ok(*how, container_id)
    if how[0] == "rm":
        assert cli.ids() == set()
        return
    assert cli.ok("wait", container_id) == "137\n"
    assert cli.record(container_id)["restarts"] == 1


@pytest.mark.parametrize("how", [("stop",), ("kill",), ("rm", "--force")])
def test_it_can_be_ended_between_two_lives(cli: Cli, rootfs: Path, how: tuple[str, ...]) -> None:
    container_id = detach(cli, rootfs, "exit 7")
    until_event(cli, "restarted", lambda line: "restarts=4" in line)  # 1.6 s of peace from now on
    cli.ok(*how, container_id)
    if how[0] == "rm":
        assert cli.ids() == set()
        return
    assert cli.ok("wait", container_id) == "7\n"
    assert cli.record(container_id)["status"] == "stopped"


def test_a_signal_that_is_forwarded_ends_it_for_good(cli: Cli, rootfs: Path) -> None:
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 1000000 & wait $!; done"
    options = ("--restart", "always", "--rootfs", str(rootfs))
    process = cli.start("run", "-a", *options, "--", "sh", "-c", script)
    assert read_line(process) == "up"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 9


def test_the_timeout_is_that_of_all_lives_together(cli: Cli, rootfs: Path) -> None:
    options = ("--restart", "always", "--timeout", "1.5", "--rootfs", str(rootfs))
    finished = cli("run", "-a", *options, "--", "sh", "-c", "echo life; sleep 1")
    assert finished.returncode == 124
    assert finished.stdout == b"life\n" * 2


@pytest.mark.parametrize("between_lives", [False, True])
def test_a_successor_of_the_supervisor_goes_on_with_it(
    cli: Cli, rootfs: Path, between_lives: bool
) -> None:
    if not between_lives:
        os.mkfifo(rootfs / "tmp" / "gate")
    script = "exit 3" if between_lives else "echo life; read x </tmp/gate; exit 3"
    options = ("--restart", "always", "--rootfs", str(rootfs))
    supervisor = cli.start("run", "-a", *options, "--", "sh", "-c", script)
    if between_lives:
        until_event(cli, "restarted", lambda line: "restarts=4" in line)
    else:
        assert read_line(supervisor) == "life"
    supervisor.kill()
    supervisor.wait()
    if between_lives:
        until_event(cli, "restarted", lambda line: "restarts=5" in line)
    else:
        (rootfs / "tmp" / "gate").write_text("go\n")
        until_event(cli, "restarted", lambda line: "restarts=1" in line)
    (container_id,) = cli.ids()
    cli.ok("rm", "--force", container_id)
    assert cgroups_of(container_id) == []


def test_after_an_upgrade_a_successor_starts_nothing_by_a_keeper_of_the_old_version(
    cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    # The old keeper would not understand it; what runs goes on, and its end is recorded.
    installed = tmp_path / "installed"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(craterun.__file__).parent, installed / "craterun", ignore=ignored)
    old = cli.behind("env", "-C", str(installed))
    os.mkfifo(rootfs / "tmp" / "gate")
    options = ("--restart", "always", "--rootfs", str(rootfs))
    script = "echo life; read x </tmp/gate; exit 3"
    supervisor = old.start("run", "-a", *options, "--", "sh", "-c", script)
    assert read_line(supervisor) == "life"
    opcodes = installed / "craterun/core/opcodes.py"
    text = opcodes.read_text()
    opcodes.write_text(text.replace("PROTOCOL: Final = ", "PROTOCOL: Final = 1000"))
    assert opcodes.read_text() != text
    supervisor.kill()
    supervisor.wait()
    (container_id,) = cli.ids()
    (rootfs / "tmp" / "gate").write_text("go\n")
    assert cli.ok("wait", container_id) == "3\n"
    assert "replaced by another version" in str(cli.record(container_id)["error"])


def test_a_rootfs_that_has_gone_is_said_in_the_record(cli: Cli, rootfs: Path) -> None:
    script = "mv /bin/sh /bin/other; exit 3"
    options = ("--restart", "always", "--rootfs", str(rootfs))
    finished = cli("run", "-a", *options, "--", "sh", "-c", script)
    assert finished.returncode == 3
    assert b"could not be started again" in finished.stderr


@pytest.mark.parametrize("policy", ["", "never", "on-failure:0", "on-failure:x", "always:3"])
def test_an_unknown_policy_is_refused(cli: Cli, rootfs: Path, policy: str) -> None:
    finished = cli("run", f"--restart={policy}", "--rootfs", str(rootfs), "--", *SLEEP)
    assert finished.returncode == 125
    assert b"is not no, on-failure" in finished.stderr
    assert cli.ids() == set()


def test_interactive_is_refused(cli: Cli, rootfs: Path) -> None:
    finished = cli("run", "-i", "--restart", "always", "--rootfs", str(rootfs), "--", *SLEEP)
    assert finished.returncode == 125
    assert b"exclude each other" in finished.stderr
