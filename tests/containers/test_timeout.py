"""run --timeout, --stop-signal and --stop-timeout: a container that runs too long is ended."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, wait_exit

cli = helpers.cli

DEAF = "trap '' TERM; echo deaf; while :; do sleep 1000000 & wait $!; done"
POLITE = "trap 'echo bye; exit 3' {0}; echo up; while :; do sleep 1000000 & wait $!; done"


def run(cli: Cli, rootfs: Path, *arguments: str) -> helpers.Finished:
    return cli("run", "--attach", "--rootfs", str(rootfs), *arguments)


def test_what_runs_too_long_is_asked_to_end_and_the_exit_code_says_so(
    cli: Cli, rootfs: Path
) -> None:
    finished = run(cli, rootfs, "--timeout", "0.5", "--", "sh", "-c", POLITE.format("TERM"))
    assert finished.returncode == 124
    assert finished.stdout == b"up\nbye\n", "its last words are kept"
    assert b"having run for 0.5 s (--timeout)" in finished.stderr
    (container_id,) = cli.ids()
    record = cli.record(container_id)
    assert (record["timed_out"], record["exit_code"]) == (True, 3)


def test_what_does_not_end_is_killed(cli: Cli, rootfs: Path) -> None:
    options = ("--timeout", "0.3", "--stop-timeout", "0.2")
    finished = run(cli, rootfs, *options, "--", "sh", "-c", DEAF)
    assert (finished.returncode, finished.stdout) == (124, b"deaf\n")
    (container_id,) = cli.ids()
    record = cli.record(container_id)
    assert (record["signal"], record["init_oom_killed"]) == (signal.SIGKILL, False)


def test_the_signal_that_asks_can_be_chosen(cli: Cli, rootfs: Path) -> None:
    options = ("--timeout", "0.3", "--stop-signal", "USR1")
    finished = run(cli, rootfs, *options, "--", "sh", "-c", POLITE.format("USR1"))
    assert (finished.returncode, finished.stdout) == (124, b"up\nbye\n")


def test_what_ends_in_time_is_left_alone(cli: Cli, rootfs: Path) -> None:
    finished = run(cli, rootfs, "--timeout", "1000", "--", "sh", "-c", "exit 5")
    assert (finished.returncode, finished.stderr) == (5, b"")
    (container_id,) = cli.ids()
    assert cli.record(container_id)["timed_out"] is False


def test_a_detached_container_is_ended_too(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--timeout", "0.5", "--init", "--rootfs", str(rootfs), "--", *SLEEP)
    assert cli.ok("wait", live.id) == "143\n"
    assert cli.record(live.id)["timed_out"] is True


def test_the_time_goes_on_when_the_supervisor_was_killed(cli: Cli, rootfs: Path) -> None:
    command = ("run", "--timeout", "3", "--init", "--rootfs", str(rootfs), "--", *SLEEP)
    process = cli.start(*command)
    container_id = helpers.read_line(process)
    live = cli.live(container_id)
    process.kill()
    wait_exit(live.pid)
    cli.ok("wait", container_id)
    assert cli.record(container_id)["timed_out"] is True


def test_stop_asks_as_the_container_wants_to_be_asked(cli: Cli, rootfs: Path) -> None:
    options = ("--stop-signal", "USR1", "--rootfs", str(rootfs))
    live = cli.detach(*options, "--", "sh", "-c", POLITE.format("USR1"))
    while cli.log(live.id) != b"up\n":
        pass
    cli.ok("stop", live.id)
    assert cli.ok("wait", live.id) == "3\n"


def test_stop_waits_as_long_as_the_container_was_given(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--stop-timeout", "0.1", "--rootfs", str(rootfs), "--", *SLEEP)
    cli.ok("stop", live.id)
    assert cli.ok("wait", live.id) == "137\n"


@pytest.mark.parametrize(
    "options",
    [("--timeout", "0"), ("--timeout=-1",), ("--timeout", "nan"), ("--timeout", "inf"),
     ("--timeout", "soon"), ("--stop-timeout=-1",), ("--stop-signal", "NONE")],
)  # fmt: skip
def test_nonsense_is_refused(options: tuple[str, ...], cli: Cli, rootfs: Path) -> None:
    cli.refused("run", "--rootfs", str(rootfs), *options, "--", "true")
    assert cli.ids() == set()
