"""The first thing that anybody tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import CommandLine

pytestmark = pytest.mark.cgroup_v2


def test_attached_hello_from_the_built_in_rootfs(craterun: CommandLine) -> None:
    result = craterun("run", "--attach", "--", "echo", "hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")


def test_plain_run_prints_the_id_and_logs_the_output(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    script = "echo out; echo err >&2; exit 3"
    result = craterun("run", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    container_id = result.stdout.decode().strip()
    assert (result.returncode, result.stderr) == (3, b"")
    assert (state_root / container_id / "stdout.log").read_bytes() == b"out\n"
    assert (state_root / container_id / "stderr.log").read_bytes() == b"err\n"
