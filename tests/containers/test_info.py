"""info: what it says is what the kernel says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli
from tests.containers.test_limits import HIERARCHIES

pytestmark = pytest.mark.cgroup_v2

cli = helpers.cli


def test_each_controller_is_told_with_its_version_and_place(cli: Cli) -> None:
    found = json.loads(cli.ok("info", "--format", "json"))
    assert (found["kernel"], found["user"]) == (os.uname().release, 0)
    seen = {c["name"]: c for c in found["controllers"]}
    assert set(seen) == {"memory", "pids", "cpu", "cpuset", "io", "freezer"}
    old = {"io": "blkio"}
    for name in ("memory", "pids", "cpu", "cpuset", "io"):
        serving = [
            h
            for h in HIERARCHIES
            if (name if h.version == 2 else old.get(name, name)) in h.controllers
        ]
        if serving:
            expected = ("yes", serving[0].version, serving[0].mountpoint)
        else:
            expected = ("no", None, None)  # type: ignore[assignment]
            assert seen[name]["note"]
        assert (seen[name]["works"], seen[name]["version"], seen[name]["place"]) == expected


def test_the_layout_is_that_of_the_mounts(cli: Cli) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    layout = json.loads(cli.ok("info", "--format", "json"))["layout"]
    assert ("cgroup2" in mounts) == (layout in ("unified", "hybrid"))
    assert (" - cgroup cgroup rw,memory" in mounts) <= (layout in ("hybrid", "legacy"))


def test_whatever_does_not_work_has_a_reason(cli: Cli) -> None:
    found = json.loads(cli.ok("doctor", "--format", "json"))
    for entry in (*found["controllers"], *found["features"]):
        assert entry["works"] == "yes" or entry["note"], entry


def test_it_fits_on_a_screen(cli: Cli) -> None:
    lines = cli.ok("info").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 110
