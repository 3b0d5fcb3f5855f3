"""A batch as a stream: results at once, no reading ahead, and an end in order whenever asked."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.containers import batch_helpers, helpers
from tests.containers.batch_helpers import as_lines, keeper_of, results_of, sh
from tests.containers.helpers import Cli, Gate, read_all, read_line
from tests.containers.streams_helpers import (
    background,
    metadata,
    until,
    wait_ended,
)
from tests.serving import Server

pytestmark = pytest.mark.no_server
cli, server = batch_helpers.cli, batch_helpers.server
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]


def write_until_full(pipe: int, line: bytes) -> int:
    """How many bytes there was room for; as if there was no end to it, for 4 MiB."""
    written = 0
    while written < 1 << 22:
        try:
            written += os.write(pipe, line)
        except BlockingIOError:
            break
    return written


class Producer:
    """A batch that reads what a test writes, when it writes it."""

    def __init__(self, cli: Cli, rootfs: Path, *options: str) -> None:
        read, self.input = os.pipe()
        arguments = ("--rootfs", str(rootfs), *options)
        self.process = cli.start("batch", "-", *arguments, stdin=read)
        os.close(read)

    def write(self, *jobs: object) -> None:
        """Further lines."""
        os.write(self.input, as_lines(jobs))

    def result(self) -> dict[str, Any]:
        """The next result."""
        result = json.loads(read_line(self.process))
        assert isinstance(result, dict)
        return result

    def close(self) -> None:
        """The end of the input."""
        os.close(self.input)
        self.input = -1

    def rest(self) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, further results, and what was said, once it has ended."""
        out, err = self.process.communicate(timeout=helpers.PATIENCE_SECONDS)
        if self.input >= 0:
            self.close()
        return self.process.returncode, results_of(out), err.decode()


def test_a_result_comes_while_the_input_is_still_open(cli: Cli, rootfs: Path) -> None:
    batch = Producer(cli, rootfs, "--capture", "100", "--jobs", "2")
    for number in range(3):
        batch.write(sh(f"echo {number}", key=str(number)))
        result = batch.result()
        assert (result["key"], result["stdout"]) == (str(number), f"{number}\n")
    batch.close()
    assert batch.rest()[:2] == (0, [])


def test_results_come_in_the_order_of_the_ends(cli: Cli, rootfs: Path, make_gate: MakeGate) -> None:
    gate = make_gate(rootfs / "gate")
    batch = Producer(cli, rootfs, "--jobs", "2")
    batch.write(sh("read x </gate"), sh("true"), sh("true"))
    assert [batch.result()["line"] for _ in range(2)] == [2, 3]
    gate.open()
    assert batch.result()["line"] == 1
    batch.close()
    assert batch.rest()[0] == 0


def test_no_more_is_read_than_there_are_workers_for(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    batch = Producer(cli, rootfs, "--jobs", "1", "--rm")
    batch.write(sh("echo >/up; read x </gate"))
    up.wait()
    os.set_blocking(batch.input, False)
    line = as_lines([sh("true", key="x" * 4000)])
    written = write_until_full(batch.input, line)
    # A pipe's worth; nothing of it was read, since the only worker is busy.
    assert written <= 65536
    gate.open()
    assert batch.result()["line"] == 1
    os.set_blocking(batch.input, True)
    batch.close()
    code, results, _ = batch.rest()
    assert len(results) == written // len(line) + (written % len(line) > 0)
    assert code == (1 if written % len(line) else 0)  # the last one may have been cut


def test_a_slow_reader_of_the_results_slows_the_batch_down(cli: Cli, rootfs: Path) -> None:
    jobs, ran = rootfs / "jobs", rootfs / "tmp"
    jobs.write_bytes(as_lines([sh(f"echo >/tmp/{n}") for n in range(6)]))
    read, write = os.pipe()
    padding = b"x" * fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    os.write(write, padding)  # there is no room for even one result
    arguments = ("batch", str(jobs), "--rootfs", str(rootfs), "--jobs", "2", "--quiet")
    with background(cli.state_root, *arguments, stdout=write) as process:
        os.close(write)
        until(ran, lambda: len(os.listdir(ran)) == 2)
        for directory in (cli.state_root / container_id for container_id in cli.ids()):
            until(directory, lambda: metadata(directory).get("status") == "stopped")  # noqa: B023
        # Each worker has a result that it cannot get rid of, and does nothing else.
        assert len(os.listdir(ran)) == len(cli.ids()) == 2
        seen = read_all(read)
    os.close(read)
    assert process.returncode == 0
    assert len(results_of(seen[len(padding) :])) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    cli: Cli, rootfs: Path, make_gate: MakeGate, number: signal.Signals
) -> None:
    up = make_gate(rootfs / "up")
    batch = Producer(cli, rootfs, "--jobs", "1", "--capture", "100")
    script = "trap 'echo bye; exit 4' TERM; echo >/up; sleep 1000 & wait"
    batch.write(sh(script, key="a"), sh("true", key="b"))
    up.wait()
    batch.process.send_signal(number)
    code, (result,), said = batch.rest()
    assert code == 128 + number
    assert (result["key"], result["failure"], result["exit_code"]) == ("a", "cancelled", 4)
    assert result["stdout"] == "bye\n"
    assert "1 job: 0 succeeded, 0 failed, 1 cancelled" in said


def test_the_second_signal_kills(cli: Cli, rootfs: Path, make_gate: MakeGate) -> None:
    up = make_gate(rootfs / "up")
    batch = Producer(cli, rootfs, "--jobs", "2", "--stop-timeout", "1000")
    batch.write(*[sh("trap 'echo >/up' TERM; echo >/up; while :; do sleep 1000 & wait; done")] * 2)
    for _ in range(2):
        up.wait_for(2)
        batch.process.send_signal(signal.SIGTERM)
    code, results, _ = batch.rest()
    assert code == 143
    assert [(r["failure"], r["signal"]) for r in results] == [("cancelled", 9)] * 2


@pytest.mark.parametrize("drain", [False, True])
def test_the_first_failure_ends_it(
    cli: Cli, rootfs: Path, make_gate: MakeGate, drain: bool
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    options = ("--fail-fast", "--drain") if drain else ("--fail-fast",)
    batch = Producer(cli, rootfs, "--jobs", "2", *options)
    batch.write(sh("echo >/up; read x </gate"))
    up.wait()
    batch.write(sh("false"), sh("echo >>/third"))
    assert batch.result()["failure"] == "exit"
    if drain:
        gate.open()
    code, (result,), _ = batch.rest()
    assert code == 1
    assert (result["line"], result["failure"]) == (1, None if drain else "cancelled")
    assert not (rootfs / "third").exists()


def test_a_bad_line_is_a_failure_to_fail_fast_at(cli: Cli, rootfs: Path) -> None:
    batch = Producer(cli, rootfs, "--jobs", "1", "--fail-fast")
    batch.write(b"nonsense", sh("true"))
    code, (result,), _ = batch.rest()
    assert (code, result["failure"]) == (1, "invalid")
    assert cli.ids() == set()


def test_without_a_reader_of_its_results_it_ends(
    cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    gate = make_gate(rootfs / "gate")
    batch = Producer(cli, rootfs, "--jobs", "2")
    batch.write(sh("trap '' TERM; sleep 1000 & wait"), sh("read x </gate"))
    assert batch.process.stdout is not None
    batch.process.stdout.close()
    batch.process.stdout = None
    gate.open()
    code, _, said = _rest_without_stdout(batch)
    assert (code, said) == (141, "")


def _rest_without_stdout(batch: Producer) -> tuple[int, None, str]:
    _, err = batch.process.communicate(timeout=helpers.PATIENCE_SECONDS)
    batch.close()
    return batch.process.returncode, None, err.decode()


def test_without_its_keeper_it_ends_and_says_so(
    cli: Cli, server: Server | None, rootfs: Path, make_gate: MakeGate
) -> None:
    up = make_gate(rootfs / "up")
    batch = Producer(cli, rootfs, "--jobs", "1")
    batch.write(sh("echo >/up; sleep 1000 & wait"), sh("true"))
    up.wait()
    keeper = keeper_of(batch.process, server)
    os.kill(keeper, signal.SIGKILL)
    code, (result,), said = batch.rest()
    assert (code, result["failure"], result["exit_code"]) == (125, "cancelled", None)
    assert "keeper" in said
    wait_ended(keeper)
