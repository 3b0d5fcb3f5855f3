"""What the tests of batches share: writing lines, reading results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.containers.helpers import Cli

Result = dict[str, Any]


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
