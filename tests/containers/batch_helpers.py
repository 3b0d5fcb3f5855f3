"""What the tests of batches share: with a server and without, writing lines, reading results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.helpers import Cli, wait_exit
from tests.containers.streams_helpers import children_of
from tests.serving import Server, serving

Result = dict[str, Any]


@pytest.fixture(params=["alone", "served"])
def server(request: pytest.FixtureRequest, state_root: Path) -> Iterator[Server | None]:
    """The server of the test's state directory, or none: a batch is to be the same with both.

    Modules that use it are marked ``no_server``, for what would be a second one.
    """
    if request.param == "alone":
        yield None
    else:
        with serving(state_root) as running:
            yield running


@pytest.fixture
def cli(state_root: Path, server: Server | None) -> Iterator[Cli]:
    """The command line, which finds the server, if there is one."""
    del server
    command_line = Cli(state_root)
    yield command_line
    command_line.close()


def keeper_of(batch: subprocess.Popen[bytes], server: Server | None) -> int:
    """The parent of the batch's containers."""
    if server is not None:
        return server.children()["craterun-keeper"]
    (keeper,) = children_of(batch.pid)
    return keeper


def kill_batch(batch: subprocess.Popen[bytes], server: Server | None) -> int:
    """SIGKILL the command; its exit code, when nothing but its containers is left of it."""
    workers = [] if server is None else server.busy_workers()
    batch.kill()
    code = batch.wait()
    for worker in workers:
        wait_exit(worker)
    return code


def kill_keeper_unnoticed(batch: subprocess.Popen[bytes], server: Server | None) -> None:
    """As if the machine had stopped: whoever looks after the containers hears nothing of it."""
    keeper = keeper_of(batch, server)
    supervisor = batch.pid if server is None else server.pid
    workers = [] if server is None else server.busy_workers()
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    batch.wait()
    for worker in workers:
        wait_exit(worker)


def as_lines(jobs: Iterable[object]) -> bytes:
    """The input of a batch. A job is the fields of its line; bytes stand for themselves."""
    lines = (job if isinstance(job, bytes) else json.dumps(job).encode() for job in jobs)
    return b"".join(line + b"\n" for line in lines)


def sh(script: str, **fields: object) -> dict[str, object]:
    """A job that runs a script."""
    return {"command": ["sh", "-c", script], **fields}


def results_of(output: bytes) -> list[Result]:
    """All results in the order in which they were written."""
    assert output.endswith(b"\n") or not output
    return [json.loads(line) for line in output.splitlines()]


def by_line(output: bytes) -> list[Result]:
    """All results in the order of the input."""
    results = sorted(results_of(output), key=lambda result: int(result["line"]))
    assert len({result["line"] for result in results}) == len(results)
    return results


def run_batch(
    cli: Cli, rootfs: Path, jobs: Iterable[object], *options: str, code: int = 0
) -> list[Result]:
    """The results of a whole batch, in the order of the input."""
    lines = as_lines(jobs)
    finished = cli("batch", "-", "--rootfs", str(rootfs), "--quiet", *options, stdin=lines)
    assert (finished.returncode, finished.stderr) == (code, b""), finished
    return by_line(finished.stdout)
