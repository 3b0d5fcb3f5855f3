"""Inputs and outputs that are not there, or of no use: a batch says so, and which one it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import batch_helpers
from tests.containers.batch_helpers import as_lines, results_of, sh
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
