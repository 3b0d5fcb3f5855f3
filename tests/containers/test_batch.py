"""`craterun batch`: every line gets a container of its own, and a result that is true."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import cli_environment
from tests.containers import batch_helpers, helpers
from tests.containers.batch_helpers import as_lines, by_line, run_batch, sh
from tests.containers.helpers import Cli
from tests.containers.screens import Window

pytestmark = pytest.mark.no_server
cli, server = batch_helpers.cli, batch_helpers.server


def test_a_result_says_how_it_ended_and_where_its_log_is(cli: Cli, rootfs: Path) -> None:
    jobs = [
        sh("echo out; echo err >&2", key="good"),
        sh("exit 3", key="bad"),
        b"",
        sh("kill -9 $$; :", init=True),
    ]
    good, bad, killed = run_batch(cli, rootfs, jobs, "--jobs", "2", code=1)
    assert (good["line"], good["key"], good["ok"], good["failure"]) == (1, "good", True, None)
    assert (good["exit_code"], good["stdout_bytes"], good["stderr_bytes"]) == (0, 4, 4)
    assert Path(good["stdout_log"]).read_bytes() == b"out\n"
    assert Path(good["stderr_log"]).read_bytes() == b"err\n"
    record = cli.record(good["container"])
    for field in ("started", "finished", "memory_peak_bytes", "cpu_seconds", "phases_us"):
        assert good[field] == record[field], field
    assert good["wall_seconds"] > 0
    assert "stdout" not in good
    assert (bad["key"], bad["ok"], bad["failure"], bad["exit_code"]) == ("bad", False, "exit", 3)
    assert (killed["line"], killed["key"]) == (4, None)
    assert (killed["failure"], killed["exit_code"]) == ("exit", 137)
    assert cli.ids() == {good["container"], bad["container"], killed["container"]}


def test_limits_hold_for_the_line_that_has_them(cli: Cli, rootfs: Path) -> None:
    hog = "head -c 100m /dev/zero | tail >/dev/null"
    jobs = [
        sh(hog, memory="16m"),
        sh("sleep 1000 & wait", timeout=0.2, stop_signal="KILL"),
        sh("cat /proc/self/cgroup", timeout=60),
    ]
    oom, timeout, fine = run_batch(cli, rootfs, jobs, "--jobs", "3", code=1)
    assert (oom["failure"], oom["oom_kills"] > 0) == ("oom", True)
    assert oom["memory_peak_bytes"] <= 16 << 20
    assert (timeout["failure"], timeout["timed_out"]) == ("timeout", True)
    assert (fine["failure"], fine["oom_kills"]) == (None, 0)


def test_options_are_what_lines_do_not_say(cli: Cli, rootfs: Path) -> None:
    jobs: list[object] = [{}, {"command": ["sh", "-c", "pwd"]}, {"env": {"A": "line"}}]
    options = ("--capture", "1k", "--env", "A=batch", "--workdir", "/tmp")
    command = ("--", "sh", "-c", "echo $A")
    outputs = [r["stdout"] for r in run_batch(cli, rootfs, jobs, *options, *command)]
    assert outputs == ["batch\n", "/tmp\n", "line\n"]


def test_input_reaches_the_command_in_full_and_nobody_has_to_read_it(
    cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "input").write_bytes(content)
    jobs = [
        {"command": ["tr", "a-z", "A-Z"], "stdin": "shout\n"},
        {"command": ["sha256sum"], "stdin_file": str(tmp_path / "input")},
        {"command": ["true"], "stdin_file": str(tmp_path / "input")},
        {"command": ["cat"]},
        {"command": ["cat"], "stdin_file": str(tmp_path / "none")},
    ]
    results = run_batch(cli, rootfs, jobs, "--jobs", "2", "--capture", "1k", code=1)
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    assert [r.get("stdout") for r in results] == ["SHOUT\n", f"{digest}  -\n", "", "", None]
    assert [r["ok"] for r in results] == [True, True, True, True, False]
    assert "No such file" in results[4]["error"]


@pytest.mark.parametrize("driver", ["file", "none"])
def test_the_beginning_of_the_output_is_in_the_result_and_nothing_else_stays(
    cli: Cli, rootfs: Path, driver: str
) -> None:
    jobs = [
        sh("printf 'a\\377b'; printf 'é' >&2"),
        # More than a log of two files of 4 KiB can keep, but for its end.
        sh("yes | head -c 1000000"),
    ]
    bounds = ("--log-max-size", "4k", "--log-max-files", "2") if driver == "file" else ()
    options = ("--capture", "5", "--rm", "--log-driver", driver, *bounds)
    binary, long = run_batch(cli, rootfs, jobs, *options)
    assert base64.b64decode(binary["stdout_base64"]) == b"a\xffb"
    assert (binary["stderr"], binary["stderr_truncated"]) == ("é", False)
    assert (long["stdout"], long["stdout_truncated"]) == ("y\ny\ny", True)
    assert long["stdout_bytes"] == 1000000
    assert (long["kept"], long["stdout_log"]) == (False, None)
    assert cli.ids() == set()


def test_only_failed_ones_may_be_kept(cli: Cli, rootfs: Path) -> None:
    good, bad = run_batch(cli, rootfs, [sh("true"), sh("false")], "--keep", "failed", code=1)
    assert (good["kept"], bad["kept"]) == (False, True)
    assert cli.ids() == {bad["container"]}
    assert Path(bad["stdout_log"]).exists()


def test_a_line_that_is_no_job_is_a_result_and_the_others_go_on(cli: Cli, rootfs: Path) -> None:
    jobs = [
        b"nonsense",
        sh("true", key="a", bogus=1),
        sh("true", memory="lots"),
        b"x" * (16 * 1024 * 1024 + 1),
        {"command": ["no-such-program"], "key": "b"},
        sh("true", rootfs="/no/such/directory"),
        sh("true"),
    ]
    results = run_batch(cli, rootfs, jobs, code=1)
    assert [r["failure"] for r in results] == [*["invalid"] * 4, "refused", "refused", None]
    for result, said in zip(
        results,
        ["line 1: this is not JSON", "line 2: ", "line 3: --memory 'lots'", "line 4: the line is "
         "longer than", "command 'no-such-program' not found", "/no/such/directory"],
        strict=False,
    ):  # fmt: skip
        assert said in result["error"]
    assert [r["key"] for r in results[:5]] == [None, "a", None, None, "b"]
    assert [r["attempts"] for r in results] == [0, 0, 0, 0, 1, 1, 1]
    assert cli.ids() == {results[6]["container"]}


def test_failures_are_tried_again_as_often_as_was_asked_for(cli: Cli, rootfs: Path) -> None:
    count = "echo x >>/tmp/{0}; test $(wc -l </tmp/{0}) -ge {1}"
    jobs = [
        sh(count.format("a", 3)),
        sh(count.format("b", 9)),
        sh("sleep 1000 & wait", timeout=0.05, stop_signal="KILL"),
        {"command": ["no-such-program"]},
    ]
    options = ("--retries", "2", "--retry-on", "exit", "--keep", "failed", "--jobs", "4")
    third, never, timeout, refused = run_batch(cli, rootfs, jobs, *options, code=1)
    assert (third["ok"], third["attempts"]) == (True, 3)
    assert [(e["failure"], e["exit_code"]) for e in third["earlier"]] == [("exit", 1)] * 2
    assert (never["ok"], never["attempts"]) == (False, 3)
    assert (timeout["attempts"], refused["attempts"]) == (1, 1)
    assert (rootfs / "tmp/a").read_text() == (rootfs / "tmp/b").read_text() == "x\n" * 3
    failed = [*third["earlier"], *never["earlier"], never, timeout]
    assert cli.ids() == {result["container"] for result in failed}


def test_what_the_host_fails_at_is_tried_again_unasked(cli: Cli, rootfs: Path) -> None:
    cli.state_root.mkdir(exist_ok=True)
    jobs = [sh("true")]
    # The folder of names is a file: a container with a name cannot be made.
    (cli.state_root / ".names").write_text("")
    (result,) = run_batch(cli, rootfs, [{**jobs[0], "name": "x"}], code=1)
    assert (result["failure"], result["attempts"]) == ("error", 3)
    assert [e["failure"] for e in result["earlier"]] == ["error"] * 2
    assert cli.ids() == set()


def test_a_named_job_can_be_tried_again(cli: Cli, rootfs: Path) -> None:
    (result,) = run_batch(cli, rootfs, [sh("false", name="x")], "--retries", "1", code=1)
    assert (result["failure"], result["attempts"]) == ("exit", 2)
    assert cli.ids() == {result["container"]}


def test_the_last_line_says_what_it_came_to(cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    path.write_bytes(as_lines([sh("true"), sh("exit 2")])[:-1])  # the last line has no end
    finished = cli("batch", str(path), "--rootfs", str(rootfs))
    assert finished.returncode == 1
    assert finished.stderr.startswith(b"craterun: 2 jobs: 1 succeeded, 1 failed (1 exit); ")
    assert [r["exit_code"] for r in by_line(finished.stdout)] == [0, 2]
    assert cli("batch", str(path), "--rootfs", str(rootfs), "--quiet").stderr == b""
    path.write_bytes(b"")
    assert (cli("batch", str(path), "--quiet").returncode, cli.ids() != set()) == (0, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-", "--resume"), "--resume needs --output"),
        (("-", "--drain"), "no use without that"),
        (("-", "--jobs", "0"), "--jobs 0 is too few"),
        (("-", "--jobs", "100000000"), "the hard limit is"),
        (("-", "--retries", "-1"), "--retries -1"),
        (("-", "--retry-on", "exit,bogus"), "knows nothing of 'bogus'"),
        (("-", "--rm", "--keep", "all"), "contradict each other"),
        (("-", "--capture", "1g"), "too much to be kept in memory"),
        (("-", "--memory", "64"), "--memory 64 is less than a page"),
        (("-", "--timeout", "0"), "--timeout 0 is no time to run for"),
        (("-", "--rootfs", "/no/such/directory"), "/no/such/directory"),
        (("/no/such/file",), "/no/such/file: No such file"),
        (("-", "--output", "/no/such/file"), "/no/such/file: No such file"),
        (("-", "--output", "/dev/null"), "not a regular file"),
        (("/tmp",), "/tmp is a directory"),
        (("",), "the name of the input is empty"),
        (("-", "--output", ""), "--output is empty"),
        (("-", "--retries", "1001"), "--retries 1001 is not between 0 and 1000"),
        (("-", "--capture=-5"), "--capture -5 is negative"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    cli: Cli, options: tuple[str, ...], said: str
) -> None:
    assert said in cli.refused("batch", *options)


def test_a_terminal_sees_how_far_it_is(cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_bytes(as_lines([sh("true"), sh("read x </gate"), sh("true")]))
    gate, window = helpers.Gate(rootfs / "gate"), Window(columns=100)
    try:
        arguments = ("--rootfs", str(rootfs), "--jobs", "1", "-o", str(tmp_path / "results"))
        window.run(cli, "batch", str(tmp_path / "jobs"), *arguments)
        window.until(lambda lines: any("1 done, 1 running, " in line for line in lines))
        assert any(line.endswith(" left") for line in window.lines)
        gate.open()
        assert window.wait() == 0
        shown = [line for line in window.lines if line]
        assert len(shown) == 1
        assert shown[0].startswith("craterun: 3 jobs: 3 succeeded, 0 failed; ")
    finally:
        window.close()
        gate.close()
    results = (tmp_path / "results").read_text().splitlines()
    assert [json.loads(line)["line"] for line in results] == [1, 2, 3]


def test_the_input_is_not_written_to(cli: Cli, tmp_path: Path) -> None:
    jobs, link = tmp_path / "jobs", tmp_path / "link"
    content = as_lines([sh("true")]) + b'{"command": ["true"]}'
    jobs.write_bytes(content)
    link.symlink_to(jobs)
    assert "is the input" in cli.refused("batch", str(jobs), "-o", str(link), "--resume")
    with jobs.open("ab") as stdout:
        finished = subprocess.run(
            cli.command("batch", str(jobs)),
            env=cli_environment(cli.state_root, None),
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (finished.returncode, b"be read as jobs" in finished.stderr) == (125, True), finished
    assert jobs.read_bytes() == content


def test_a_pipe_that_is_a_file_of_variables_holds_up_nobody(
    cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "env").write_text("A=file\nB=file\n")
    jobs = [
        sh("test $A$B = fileline", env={"B": "line"}, env_file=str(tmp_path / "env")),
        *(sh("true", env_file=str(tmp_path / name)) for name in ("fifo", "none")),
    ]
    good, *bad = run_batch(cli, rootfs, jobs, code=1)
    assert good["ok"]
    assert [(r["failure"], r["error"].rpartition(" ")[2]) for r in bad] == [
        ("refused", "file"), ("refused", "directory"),
    ]  # fmt: skip


@pytest.mark.parametrize("ignored", [None, signal.SIGHUP], ids=["heeds SIGHUP", "ignores SIGHUP"])
def test_a_terminal_that_goes_away_takes_no_job_with_it(
    cli: Cli, rootfs: Path, tmp_path: Path, ignored: signal.Signals | None
) -> None:
    """They go on, or are asked to end; either way they have results."""
    script = "trap 'exit 3' TERM; echo >/up; read x </gate"
    (tmp_path / "jobs").write_bytes(as_lines([sh(script), sh(script), sh("true")]))
    up, gate, window = helpers.Gate(rootfs / "up"), helpers.Gate(rootfs / "gate"), Window()
    results = tmp_path / "results"
    try:
        arguments = ("--rootfs", str(rootfs), "--jobs", "2", "-o", str(results))
        process = window.run(cli, "batch", str(tmp_path / "jobs"), *arguments, ignored=ignored)
        window.until(lambda lines: any("0 done, 2 running" in line for line in lines))
        up.wait_for(2)
        window.hang_up()
        if ignored:
            gate.open()
            gate.open()
        code = process.wait(timeout=60)
    finally:
        window.close()
        gate.close()
        up.close()
    found = [(r["failure"], r["exit_code"]) for r in by_line(results.read_bytes())]
    if ignored:
        assert (code, found) == (0, [(None, 0)] * 3)
    else:
        assert (code, found) == (129, [("cancelled", 3)] * 2)
