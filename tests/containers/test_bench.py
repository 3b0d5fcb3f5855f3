"""`craterun bench`: figures of real runs, mistakes told before time is spent, nothing left."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from craterun.bench.report import PHASES, Report
from tests.conftest import CommandLine
from tests.containers.streams_helpers import Gate, background

SMALL = ("--count", "6", "--rounds", "2", "--jobs", "1,3", "--log-size", "1m")


def report_of(output: bytes) -> Report:
    return msgspec.json.decode(output, type=Report)


def test_a_benchmark_reports_every_run_and_every_phase(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    picture = rootfs.parent / "picture.svg"
    options = ("--rootfs", str(rootfs), "--memory", "32m", "--plot", str(picture))
    result = craterun("bench", *SMALL, *options, "--format", "json", "--quiet")
    report = report_of(result.stdout)
    assert result.stderr == b""
    assert [level.jobs for level in report.levels] == [1, 3]
    for level in report.levels:
        assert len(level.per_second["craterun"]) == 2
        assert set(level.latency_us) == {name for name, _ in PHASES} | {"start", "total"}
        assert level.latency_us["total"].p99 >= level.latency_us["start"].p50 > 0
    assert report.limits == {"memory": "32m"}
    assert set(report.log_bytes_per_second) == {"craterun", "cat"}
    assert picture.read_text().startswith("<svg")
    picture.unlink()
    assert [p.name for p in state_root.iterdir() if p.name.startswith(".bench")] == []


def test_peers_take_part_and_missing_ones_are_named(
    craterun: CommandLine, rootfs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # All that is there but bwrap: a PATH with links to what else peers and shells need.
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            link = tmp_path / program.name
            if program.name != "bwrap" and not link.is_symlink():
                link.symlink_to(program)
    options = ("--rootfs", str(rootfs), "--compare", "runc,bwrap", "--log-size", "0")
    small = ("--count", "3", "--rounds", "1", "--jobs", "2")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = craterun("bench", *small, *options, "--format", "json")
    report = report_of(result.stdout)
    assert set(report.missing) == {"bwrap"}
    assert b"bwrap is missing" in result.stderr
    if "runc" not in report.missing | report.failed:
        assert len(report.levels[0].per_second["runc"]) == 1
        assert report.versions["runc"]
    assert report.log_bytes_per_second == {}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--count", "0"), b"--count 0"),
        (("--jobs", "1,x"), b"--jobs '1,x'"),
        (("--compare", "lxc"), b"'lxc'"),
        (("--plot", "/tmp/x.png"), b".svg"),
        (("--plot", "/nowhere/x.svg"), b"cannot be written"),
        (("--log-size", "5"), b"--log-size 5"),
        (("--", "false"), b"ended with exit code 1"),
        (("--", "no-such-program"), b"not found"),
    ],
)
def test_mistakes_are_told_at_once(
    craterun: CommandLine, options: tuple[str, ...], complaint: bytes
) -> None:
    result = craterun("bench", *options)
    assert result.returncode in {125, 127}
    assert complaint in result.stderr
    assert result.stderr.count(b"\n") == 1


@contextmanager
def under_way(rootfs: Path, state_root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A long benchmark, beyond what warms up."""
    state_root.mkdir()
    inside = ("--rootfs", str(rootfs), "--", "sh", "-c", "echo >/up")
    with (
        Gate(rootfs / "up") as up,
        background(state_root, "bench", "--quiet", "--count", "100000", *inside) as process,
    ):
        for _ in range(20):
            up.wait()
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_benchmark_leaves_nothing(
    rootfs: Path, state_root: Path, number: int
) -> None:
    with under_way(rootfs, state_root) as process:
        process.send_signal(number)
        assert process.wait(60) in {130, 128 + number}
    assert [p.name for p in state_root.iterdir() if p.name.startswith(".bench")] == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_end_the_clean_up(
    rootfs: Path, state_root: Path, first: signal.Signals
) -> None:
    """Many, so that some arrive in each part of the clean-up; the first one says how it ended."""
    with under_way(rootfs, state_root) as process:
        process.send_signal(first)
        for number in itertools.cycle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
            if process.poll() is not None:
                break
            process.send_signal(number)
            time.sleep(0.002)
        assert process.wait(60) == 128 + first
    assert [p.name for p in state_root.iterdir() if p.name.startswith(".bench")] == []


def test_what_cannot_be_measured_is_said_beside_what_was(
    craterun: CommandLine, rootfs: Path, tmp_path: Path
) -> None:
    """No producer for the log, no room for the picture."""
    (rootfs / "bin/dd").unlink()
    (tmp_path / "full.svg").symlink_to("/dev/full")
    small = ("--count", "2", "--rounds", "1", "--jobs", "1", "--log-size", "1m")
    options = ("--rootfs", str(rootfs), "--format", "json", "--quiet")
    result = craterun("bench", *small, *options, "--plot", str(tmp_path / "full.svg"))
    report = report_of(result.stdout)
    assert len(report.levels[0].per_second["craterun"]) == 1
    assert "'dd' not found" in report.failed["log"]
    assert result.returncode == 125
    assert b"full.svg: No space left on device" in result.stderr
    assert b"Traceback" not in result.stderr
    (tmp_path / "folder.svg").mkdir()
    result = craterun("bench", "--plot", str(tmp_path / "folder.svg"))
    assert (result.returncode, b"is a directory" in result.stderr) == (125, True)


def test_several_containers_that_do_not_fit_are_one_complaint(
    craterun: CommandLine, rootfs: Path
) -> None:
    options = ("--rootfs", str(rootfs), "--quiet", "--log-size", "0", "--rounds", "1")
    few = resource.RLIMIT_NOFILE, (128, 128)
    result = craterun(
        *("bench", *options, "--count", "50", "--jobs", "50"),
        preexec_fn=lambda: resource.setrlimit(*few),
    )
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1), result.stderr
    assert b"--jobs 50 needs 464 open files, and the hard limit is 128" in result.stderr
    inside = ("--", "sh", "-c", "sleep 0.1; exit 3")
    result = craterun("bench", *options, "--count", "4", "--jobs", "4", *inside)
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1), result.stderr
    assert b"ended with" in result.stderr


def test_a_container_that_its_limit_has_killed_is_no_fault_of_the_command(
    craterun: CommandLine,
) -> None:
    result = craterun("bench", "--memory", "4k", "--quiet")
    assert result.returncode == 125
    assert b"true was killed by SIGKILL" in result.stderr
    assert b"the memory limit of 4 KiB was hit" in result.stderr
    assert b"; give more --memory\n" in result.stderr


def test_programs_that_are_not_there_are_named(
    craterun: CommandLine, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    small = ("--count", "1", "--rounds", "1", "--jobs", "1", "--log-size", "1m")
    result = craterun("bench", *small, "--rootfs", str(rootfs), "--quiet")
    assert result.stderr == (
        b"craterun: log was not measured: cat cannot be measured: there is no sh in PATH\n"
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_report_that_cannot_be_written_is_told_as_such(
    craterun: CommandLine, rootfs: Path, form: str
) -> None:
    small = ("--count", "1", "--rounds", "1", "--jobs", "1", "--log-size", "0", "--format", form)
    with open("/dev/full", "wb") as full:
        result = craterun("bench", *small, "--rootfs", str(rootfs), "--quiet", stdout=full)
    assert (result.returncode, result.stderr) == (
        125,
        b"craterun: cannot write the report to stdout: No space left on device\n",
    )
