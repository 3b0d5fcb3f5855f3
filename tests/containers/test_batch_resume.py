"""A batch goes on where it was, also after `kill -9`: each job has one result, and was run once."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import batch_helpers, helpers
from tests.containers.batch_helpers import (
    Result,
    as_lines,
    keeper_of,
    kill_batch,
    kill_keeper_unnoticed,
    results_of,
    sh,
)
from tests.containers.helpers import Cli, Gate
from tests.containers.streams_helpers import children_of, is_alive, metadata, until, wait_ended
from tests.serving import Server

pytestmark = pytest.mark.no_server
cli, server = batch_helpers.cli, batch_helpers.server
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]


class Job:
    """A batch with its files, to be begun, killed and gone on with."""

    def __init__(self, cli: Cli, server: Server | None, rootfs: Path, tmp_path: Path) -> None:
        self._cli = cli
        self.server = server
        self._rootfs = rootfs
        self.input = tmp_path / "jobs"
        self.output = tmp_path / "out" / "results"
        self.output.parent.mkdir()
        self.keepers: list[int] = []

    def arguments(self, *options: str) -> list[str]:
        """The command line."""
        rootfs = ("--rootfs", str(self._rootfs))
        return ["batch", str(self.input), "-o", str(self.output), *rootfs, "--quiet", *options]

    def run(self, *options: str, code: int = 0) -> None:
        """To the end."""
        finished = self._cli(*self.arguments(*options))
        assert (finished.returncode, finished.stdout, finished.stderr) == (code, b"", b""), finished

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """In the background."""
        return self._cli.start(*self.arguments(*options))

    def kill(self, process: subprocess.Popen[bytes]) -> int:
        """SIGKILL it. Returns its keeper."""
        keeper = keeper_of(process, self.server)
        self._note_keepers(process)
        kill_batch(process, self.server)
        return keeper

    def _note_keepers(self, process: subprocess.Popen[bytes]) -> None:
        if self.server is None:  # whose own goes on
            self.keepers += children_of(process.pid)

    def kill_after(self, count: int, process: subprocess.Popen[bytes]) -> bool:
        """SIGKILL it after so many further results; False if it has ended before."""
        wanted = self._count() + count
        ended = os.pidfd_open(process.pid)
        try:
            until(
                self.output.parent,
                lambda: self._count() >= wanted or process.poll() is not None,
                ended,
            )
        finally:
            os.close(ended)
        self._note_keepers(process)
        return kill_batch(process, self.server) == -signal.SIGKILL

    def results(self) -> list[Result]:
        """All that there are, in the order in which they were written."""
        return results_of(self.output.read_bytes())

    def _count(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0


@pytest.fixture
def job(cli: Cli, server: Server | None, rootfs: Path, tmp_path: Path) -> Iterator[Job]:
    job = Job(cli, server, rootfs, tmp_path)
    yield job
    for keeper in job.keepers:
        wait_ended(keeper)


def once(script: str, key: str | None) -> dict[str, object]:
    """A job that leaves a trace of each time that it was run."""
    return sh(f"echo {key} >>/ran; {script}", **({} if key is None else {"key": key}))


def traces(rootfs: Path) -> dict[str, int]:
    """How often each job was run."""
    return dict(collections.Counter((rootfs / "ran").read_text().split()))


def test_what_is_done_is_not_done_again(job: Job, rootfs: Path) -> None:
    first = [once("true", "a"), once("false", "b"), sh("echo line >>/ran"), b"nonsense"]
    job.input.write_bytes(as_lines(first))
    job.run(code=1)
    job.run("--resume", code=1)  # nothing is new, and something has failed
    assert len(job.results()) == 4
    # Lines may change places, if they have keys; and bad ones may be mended.
    second = [once("true", "c"), once("false", "b"), sh("no"), once("true", "d"), once("true", "a")]
    job.input.write_bytes(as_lines(second))
    job.run("--resume", code=1)
    assert sorted(r["key"] for r in job.results()[4:]) == ["c", "d"]
    assert traces(rootfs) == dict.fromkeys(["a", "b", "line", "c", "d"], 1)
    job.run("--resume", "--rerun-failed", code=1)
    assert [r["key"] for r in job.results()[6:]] == ["b"]
    assert sorted(job.output.parent.iterdir()) == [job.output]


def test_invalid_lines_may_change_places_if_they_have_keys(job: Job) -> None:
    bad = [once("true", key) | {"bogus": 1} for key in ("b", "d")]
    job.input.write_bytes(as_lines([once("true", "a"), bad[0]]))
    job.run(code=1)
    job.input.write_bytes(as_lines([once("true", "c"), bad[1], once("true", "a"), bad[0]]))
    job.run("--resume", code=1)
    assert sorted((r["key"], r["failure"]) for r in job.results()) == [
        ("a", None), ("b", "invalid"), ("c", None), ("d", "invalid"),
    ]  # fmt: skip


def test_a_job_with_a_name_takes_it_from_its_own_earlier_container(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    jobs = [
        sh("trap 'exit 1' TERM; echo >/up; read x </gate; exit 7", key="a", name="one"),
        sh("test $(wc -l </ran) = 1 && exit 0; echo >/ran; exit 7", key="b", name="two"),
    ]
    (rootfs / "ran").touch()
    job.input.write_bytes(as_lines(jobs[:1]))
    process = job.start()
    up.wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    gate.open()
    job.input.write_bytes(as_lines(jobs))
    job.run("--resume", code=1)
    gate.open()
    job.run("--resume", "--rerun-failed", code=1)
    results = job.results()
    assert sorted((r["key"], r["failure"] or "") for r in results) == [
        ("a", "cancelled"), ("a", "exit"), ("a", "exit"), ("b", ""), ("b", "exit"),
    ]  # fmt: skip
    last = {r["key"]: r["container"] for r in results}
    assert cli.ids() == set(last.values())
    # That of another is nobody's to take.
    job.output.unlink()
    job.run(code=1)
    assert {r["failure"] for r in job.results()} == {"refused"}
    assert cli.ids() == set(last.values())


def test_two_batches_do_not_share_a_file(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    job.input.write_bytes(as_lines([sh("echo >/up; read x </gate")]))
    process = job.start()
    up.wait()
    assert "another batch is writing" in cli.refused(*job.arguments("--resume"))
    gate.open()
    assert process.wait() == 0
    assert "is not empty; go on where it ends by --resume" in cli.refused(*job.arguments())


def test_what_was_cancelled_is_run_again(job: Job, rootfs: Path, make_gate: MakeGate) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    script = "trap 'exit 1' TERM; echo >/up; read x </gate"
    job.input.write_bytes(as_lines([once(script, "a"), once("true", "b")]))
    process = job.start("--jobs", "1")
    up.wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    gate.open()
    job.run("--resume", "--jobs", "1")
    assert [(r["key"], r["failure"]) for r in job.results()] == [
        ("a", "cancelled"), ("a", None), ("b", None),
    ]  # fmt: skip
    assert traces(rootfs) == {"a": 2, "b": 1}


@pytest.mark.parametrize("ended", [False, True], ids=["still running", "ended meanwhile"])
def test_what_runs_when_it_is_killed_is_waited_for_and_not_run_twice(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate, ended: bool
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    jobs = [
        once("true", "a"),
        once("echo before; echo >/up; read x </gate; echo after; exit 5", "b"),
        once("true", "c"),
    ]
    job.input.write_bytes(as_lines(jobs))
    options = ("--jobs", "1", "--capture", "100", "--keep", "failed")
    process = job.start(*options)
    up.wait()
    (before,) = cli.ids()
    keeper = job.kill(process)
    with job.output.open("ab") as file:
        file.write(b'{"line":2,"key":"b","ok":tr')  # as if it was killed while it wrote this
    assert "was killed" in cli.refused(*job.arguments()) or job.output.stat().st_size
    if ended:
        gate.open()
        folder = cli.state_root / before
        until(folder, lambda: metadata(folder).get("status") == "stopped")
        process = job.start(*options, "--resume")
    else:
        process = job.start(*options, "--resume")
        until(job.output.parent, lambda: job.output.read_bytes().endswith(b"\n"))
        assert is_alive(keeper)
        gate.open()
    assert process.wait() == 1
    results = job.results()
    assert [(r["key"], r["exit_code"], r["adopted"]) for r in results] == [
        ("a", 0, False), ("b", 5, True), ("c", 0, False),
    ]  # fmt: skip
    assert (results[1]["container"], results[1]["stdout"]) == (before, "before\nafter\n")
    assert (results[1]["stdout_bytes"], results[1]["attempts"]) == (13, 1)
    assert traces(rootfs) == {"a": 1, "b": 1, "c": 1}
    assert cli.ids() == {before}
    assert sorted(job.output.parent.iterdir()) == [job.output]


def test_what_was_being_tried_again_is_not_run_twice_either(
    job: Job, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    script = "test $(wc -l </ran) -ge 2 || exit 1; echo >/up; read x </gate; exit 2"
    job.input.write_bytes(as_lines([once(script, "a")]))
    process = job.start("--jobs", "1", "--retries", "1", "--rm")
    up.wait()
    job.kill(process)
    gate.open()
    job.run("--resume", "--rm", code=1)
    (result,) = job.results()
    assert (result["exit_code"], result["attempts"], result["adopted"]) == (2, 2, True)
    assert traces(rootfs) == {"a": 2}


def test_what_was_being_given_input_is_run_again(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up = make_gate(rootfs / "up")
    script = "test -e /second || { >/second; echo >/up; sleep 1000 & wait; }; cat"
    job.input.write_bytes(as_lines([{**once(script, "a"), "stdin": "all of it"}]))
    process = job.start("--capture", "100")
    up.wait()
    job.kill(process)
    job.run("--resume", "--capture", "100")
    (result,) = job.results()
    assert (result["stdout"], result["adopted"]) == ("all of it", False)
    assert traces(rootfs) == {"a": 2}
    assert cli.ids() == {result["container"]}


def test_what_outlived_the_batch_may_be_run_again_instead(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up = make_gate(rootfs / "up")
    script = "test -e /second || { >/second; echo >/up; sleep 1000 & wait; }"
    job.input.write_bytes(as_lines([once(script, "a")]))
    process = job.start()
    up.wait()
    job.kill(process)
    job.run("--resume", "--orphans", "rerun")
    (result,) = job.results()
    assert (result["ok"], result["adopted"], traces(rootfs)) == (True, False, {"a": 2})
    assert cli.ids() == {result["container"]}


def test_what_has_died_with_its_keeper_is_run_again(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    job.input.write_bytes(as_lines([once("echo >/up; read x </gate", None)]))
    process = job.start()
    up.wait()
    kill_keeper_unnoticed(process, job.server)
    gate.open()
    job.run("--resume")
    (result,) = job.results()
    assert (result["ok"], result["adopted"], traces(rootfs)) == (True, False, {"None": 2})
    assert cli.ids() == {result["container"]}


def test_a_signal_ends_what_was_taken_over_as_well(
    job: Job, rootfs: Path, make_gate: MakeGate
) -> None:
    up = make_gate(rootfs / "up")
    script = "trap 'exit 6' TERM; echo >/up; sleep 1000 & wait"
    job.input.write_bytes(as_lines([once(script, "b")]))
    process = job.start()
    up.wait()
    job.kill(process)
    # With two workers, the other one begins only when the first one waits for what it has found.
    job.input.write_bytes(as_lines([once(script, "b"), once("echo >/up; sleep 1000 & wait", "c")]))
    process = job.start("--jobs", "2", "--resume", "--stop-timeout", "0")
    up.wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    results = {r["key"]: (r["exit_code"], r["failure"], r["adopted"]) for r in job.results()}
    assert results == {"b": (6, "cancelled", True), "c": (137, "cancelled", False)}


def test_what_was_to_be_removed_after_its_result_still_is(job: Job, cli: Cli) -> None:
    job.input.write_bytes(as_lines([sh("true"), sh("true")]))
    job.run()
    # As if it was killed between writing the results and removing the containers.
    job.output.write_text(job.output.read_text().replace('"kept":true', '"kept":false'))
    state = {"root": str(cli.state_root), "secret": "x", "attempts": 3}
    Path(f"{job.output}.running").write_text(json.dumps(state))
    assert len(cli.ids()) == 2
    job.run("--resume", "--rm")
    assert cli.ids() == set()


@pytest.mark.parametrize("orphans", ["wait", "rerun"])
def test_whenever_it_is_killed_each_job_has_one_result(
    job: Job, cli: Cli, rootfs: Path, orphans: str
) -> None:
    keys = [f"job{number}" for number in range(20)]
    job.input.write_bytes(as_lines(once("echo out", key) for key in keys))
    waits = orphans == "wait"
    options = ("--jobs", "3", "--capture", "10", *(["--rm"] if waits else []))
    assert job.kill_after(3, job.start(*options))
    for _ in range(3):
        job.kill_after(3, job.start(*options, "--resume", "--orphans", orphans))
    job.run(*options, "--resume", "--orphans", orphans)
    results = job.results()
    assert sorted(r["key"] for r in results) == sorted(keys)
    assert all(r["ok"] for r in results)
    if waits:
        assert traces(rootfs) == dict.fromkeys(keys, 1)
        assert cli.ids() == set()
    else:
        assert not any(r["adopted"] for r in results)
        assert cli.ids() == {r["container"] for r in results}
    # What was on its way when a batch was killed may be missing, and nothing else.
    assert {r["stdout"] for r in results if not r["adopted"]} == {"out\n"}
    assert sorted(job.output.parent.iterdir()) == [job.output]


@pytest.mark.parametrize("how", ["fail-fast", "signal"])
def test_what_runs_is_known_until_a_batch_has_come_to_it(
    job: Job, cli: Cli, rootfs: Path, make_gate: MakeGate, how: str
) -> None:
    """Those in between end before they come to its line."""
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    rest = as_lines(once("echo >/up; read x </gate", key) for key in ("b", "c"))
    job.input.write_bytes(rest)
    process = job.start("--jobs", "2")
    up.wait_for(2)
    before = cli.ids()
    job.kill(process)
    if how == "fail-fast":
        first, failure = sh("exit 1", key="first"), "exit"
        job.input.write_bytes(as_lines([first]) + rest)
        job.run("--resume", "--jobs", "1", "--fail-fast", code=1)
    else:
        script = "test -e /second && exit 1; >/second; echo >/up; sleep 1000"
        first, failure = sh(script, key="first", stop_timeout=0), "cancelled"
        job.input.write_bytes(as_lines([first]) + rest)
        process = job.start("--resume", "--jobs", "1")
        up.wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    assert [(r["key"], r["failure"]) for r in job.results()] == [("first", failure)]
    assert all(metadata(cli.state_root / name)["status"] == "running" for name in before)
    for _ in before:
        gate.open()
    job.run("--resume", "--jobs", "1", code=1)
    found = {r["key"]: (r["container"], r["adopted"]) for r in job.results() if r["ok"]}
    assert found.keys() == {"b", "c"}
    assert {adopted for _, adopted in found.values()} == {True}
    assert {container for container, _ in found.values()} == before
    assert traces(rootfs) == {"b": 1, "c": 1}
    assert sorted(job.output.parent.iterdir()) == [job.output]


def test_what_was_begun_again_after_a_failure_is_known_as_well(
    job: Job, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    script = "test $(wc -l </ran) -ge 2 || exit 1; echo >/up; read x </gate"
    job.input.write_bytes(as_lines([once(script, "a")]))
    job.run(code=1)
    process = job.start("--resume", "--rerun-failed")
    up.wait()
    job.kill(process)
    gate.open()
    job.run("--resume")
    assert [(r["ok"], r["adopted"]) for r in job.results()] == [(False, False), (True, True)]
    assert traces(rootfs) == {"a": 2}
