"""The small versions of bench/soak.py: a mixture through one supervisor, or through one server."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench._craterun_clients import NOT_SERVED, Crowd, Script, Wait
from bench.peers import HERE, craterun_env
from bench.soak import MEMORY_BYTES, differences, left_on_host
from bench.soakserve import served_soak
from tests.containers import helpers

COUNT = 300
SERVED_COUNT = 40


def run_soak(rootfs: Path, state_root: Path, *, seed: int) -> dict[str, Any]:
    """What bench/_craterun_soak.py reports of `COUNT` containers."""
    command = [sys.executable, HERE / "_craterun_soak.py", rootfs, state_root, COUNT, 8, seed]
    finished = subprocess.run(
        list(map(str, command)),
        env=craterun_env(),
        capture_output=True,
        timeout=4 * helpers.PATIENCE_SECONDS,
    )
    assert (finished.returncode, finished.stderr) == (0, b""), finished.stderr.decode()
    report = json.loads(finished.stdout)
    assert isinstance(report, dict)
    return report


@pytest.mark.slow
def test_a_mixture_of_containers_leaves_everything_as_it_was(
    rootfs: Path, state_root: Path
) -> None:
    report = run_soak(rootfs, state_root, seed=300)
    assert report["wrong"] == []
    assert len(report["kinds"]) == 14, "each kind has come up"
    assert differences(report) == []
    assert left_on_host(report["ids"], state_root) == []


@pytest.mark.no_server
def test_clients_of_a_server_get_what_they_should_and_leave_everything_as_it_was(
    rootfs: Path, state_root: Path
) -> None:
    report = served_soak(rootfs, state_root, SERVED_COUNT, 6, seed=12)
    assert report["wrong"] == []
    assert sum(report["kinds"].values()) == 2 * SERVED_COUNT
    assert len(report["kinds"]) == 15, "each kind has come up"
    assert differences(report) == []
    assert left_on_host(report["ids"], state_root) == []


def test_clients_without_a_server_are_seen(tmp_path: Path) -> None:
    """They exit with a code of their own, and nothing is run in the process of the clients."""
    crowd = Crowd(["--socket", str(tmp_path / "none"), "--root", str(tmp_path)], str(tmp_path))
    wrong: list[str] = []

    def script() -> Script:
        client = crowd.start("run", "--", "true")
        yield client.end()
        assert client.code == NOT_SERVED

    with closing(crowd):
        crowd.run(iter([script(), None]).__next__, 1, wrong)
        assert crowd.unserved() == ["run -- true "]
    assert wrong == []
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_is_stuck_is_told_of(tmp_path: Path) -> None:
    crowd = Crowd([], str(tmp_path))
    wrong: list[str] = []

    def script() -> Script:
        yield Wait("miracle", lambda: False, 0.0)

    with closing(crowd):
        crowd.run(iter([script(), None]).__next__, 1, wrong)
    assert wrong == ["after 0 s still no miracle"]


def test_a_difference_is_seen(tmp_path: Path) -> None:
    before = {"keeper descriptors": 5, "keeper memory": 10, "supervisor threads": 4}
    report = {"before": before, "halfway": before, "after": dict(before)}
    assert differences(report) == []
    report["after"] |= {"keeper descriptors": 6, "supervisor threads": 3}
    assert differences(report) == ["keeper descriptors: 5 before, 6 after"]
    report["after"] = before | {"keeper memory": 11 + MEMORY_BYTES}
    assert [line.split(":")[0] for line in differences(report)] == ["keeper memory"]
    (tmp_path / ".events").mkdir()
    (tmp_path / "0123456789abcdef").mkdir()
    assert left_on_host([], tmp_path) == [f"file: {tmp_path}/0123456789abcdef"]
