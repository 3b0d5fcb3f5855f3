"""Inputs and outputs that are not there, or of no use: a batch says so, and which one it is."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import trio

from craterun import CraterunError, Supervisor
from craterun.batch.job import Job
from craterun.batch.options import Options
from craterun.batch.runner import Batch
from craterun.cli.batchrun import Ends, _remedy
from tests.containers import batch_helpers
from tests.containers.batch_helpers import as_lines, results_of, run_batch, sh
from tests.containers.helpers import Cli

pytestmark = pytest.mark.no_server
cli, server = batch_helpers.cli, batch_helpers.server


def redirected(cli: Cli, how: str) -> Cli:
    """The command line with its streams redirected as a shell does it."""
    return cli.behind("sh", "-c", f'exec "$@" {how}', "sh")


@pytest.fixture
def jobs(tmp_path: Path) -> str:
    file = tmp_path / "jobs"
    file.write_bytes(as_lines([sh("echo x")]))
    return str(file)


def test_a_closed_stdout_or_stdin_is_refused_where_it_would_be_used(
    cli: Cli, rootfs: Path, tmp_path: Path, jobs: str
) -> None:
    options = ("--rootfs", str(rootfs), "--rm", "--quiet")
    said = redirected(cli, ">&-").refused("batch", jobs, *options)
    assert said == (
        "stdout is closed, and the results would be lost; redirect it, or give --output FILE"
    )
    said = redirected(cli, "<&-").refused("batch", "-", *options)
    assert said == (
        "stdin is closed, and there is nothing to be read; give FILE, or redirect stdin"
    )
    assert "stdout is closed" in redirected(cli, ">&-").refused("bench")
    assert cli.ids() == set()
    output = tmp_path / "results"
    finished = redirected(cli, "<&- >&-")("batch", jobs, "-o", str(output), *options)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert [r["ok"] for r in results_of(output.read_bytes())] == [True]
    finished = redirected(cli, "<&- 2>&-")("batch", jobs, *options)
    assert [r["ok"] for r in results_of(finished.stdout)] == [True]


def test_an_input_that_cannot_be_read_is_named(cli: Cli, tmp_path: Path) -> None:
    said = cli.refused("batch", "/proc/self/mem")
    assert said == "cannot read /proc/self/mem: Input/output error"
    said = redirected(cli, f"0>{tmp_path}/x").refused("batch", "-")
    assert said == "cannot read standard input: it is not open for reading"


def test_what_was_read_before_the_input_failed_is_done(rootfs: Path, tmp_path: Path) -> None:
    lines = [as_lines([sh("echo x")])]

    async def receive() -> bytes:
        if lines:
            return lines.pop()
        raise CraterunError("cannot read it")

    results: list[bytes] = []

    async def emit(result: bytes) -> None:
        results.append(result)

    async def main() -> None:
        defaults = Job(rootfs=str(rootfs))
        async with Supervisor(str(tmp_path / "state")) as supervisor:
            batch = Batch(supervisor, Options(jobs=2, defaults=defaults), receive, emit)
            with pytest.raises(CraterunError, match="cannot read it"):
                await batch.run()

    trio.run(main)
    assert [json.loads(result)["ok"] for result in results] == [True]


def test_an_oom_score_that_needs_a_capability_is_refused_and_not_tried_again(
    cli: Cli, rootfs: Path
) -> None:
    without = cli.behind("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all")
    (result,) = run_batch(
        without, rootfs, [sh("true", oom_score_adj=-1000)], "--retries", "3", code=1
    )
    assert (result["failure"], result["attempts"]) == ("refused", 1)
    assert "it takes CAP_SYS_RESOURCE" in result["error"]


def test_results_that_cannot_be_written_come_with_a_remedy(cli: Cli, jobs: str) -> None:
    said = redirected(cli, ">/dev/full").refused("batch", jobs, "--rm")
    assert said == (
        "results cannot be written to stdout: No space left on device; make room, and run it again "
        "with --output, which can be gone on with"
    )


def test_a_full_disk_below_the_results_says_how_to_go_on() -> None:
    ends = Ends(
        root="/", source=0, source_name="x", output="r", resume=False, rerun_failed=False,
        quiet=True,
    )  # fmt: skip
    assert _remedy(OSError(errno.ENOSPC, "x"), ends) == "; make room, then go on with --resume"
    assert _remedy(OSError(errno.EIO, "x"), ends) == ("; when that is mended, go on with --resume")
