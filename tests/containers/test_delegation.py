"""A cgroup that was delegated to an ordinary user, as systemd does with Delegate=yes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.core.units import new_id
from tests.containers import test_rootless as rootless
from tests.containers.test_limits import HIERARCHIES, HOG, MEMORY_ON_2

pytestmark = [
    pytest.mark.cgroup_v2,
    pytest.mark.skipif(not MEMORY_ON_2, reason="version 1 cannot be delegated"),
]

as_user = rootless.as_user
RunAs = rootless.RunAs
CRATERUN = f"exec {shlex.quote(sys.executable)} -m craterun"


@pytest.fixture
def scope() -> Iterator[Path]:
    """A cgroup that belongs to the user. Tests name it first, so that it goes last."""
    top = Path(next(h.mountpoint for h in HIERARCHIES if h.version == 2))
    (top / "cgroup.subtree_control").write_text("+memory +pids")
    here = top / f"craterun-test-{new_id()}.scope"
    here.mkdir()
    for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(here / name, rootless.UID, rootless.UID)
    yield here
    for directory, _, _ in os.walk(here, topdown=False):
        os.rmdir(directory)


def enter(scope: Path) -> str:
    """For root: a shell command that moves the shell there."""
    return f"echo $$ >{scope}/cgroup.procs"


def test_limits_hold_in_a_delegated_cgroup(scope: Path, as_user: RunAs) -> None:
    assert as_user(f"{CRATERUN} run -- {HOG}", enter(scope)).returncode == 0
    assert as_user(f"{CRATERUN} run -m 32m -- {HOG}", enter(scope)).returncode == 137


def test_a_detached_container_lives_there_and_supervisor_and_keeper_in_a_leaf(
    scope: Path, as_user: RunAs
) -> None:
    started = as_user(f"{CRATERUN} run -d -m 32m --pids 9 -- sleep 1000", enter(scope))
    assert (started.returncode, started.stderr) == (0, b"")
    container = started.stdout.decode().strip()
    place = scope / "craterun" / container
    assert (place / "memory.max").read_text() == f"{32 << 20}\n"
    assert (place / "pids.max").read_text() == "9\n"
    assert len((place / "cgroup.procs").read_text().split()) == 1
    assert (scope / "cgroup.procs").read_text() == ""
    assert len((scope / "craterun.supervisor" / "cgroup.procs").read_text().split()) == 2
    # A command that came from elsewhere could not be limited, and is refused.
    refused = as_user(f"craterun exec {container} -- true")
    assert refused.returncode == 125
    assert b"would not hold" in refused.stderr
    assert as_user(f"craterun rm --force {container}").returncode == 0
    assert not place.exists()


def test_where_others_are_limits_are_refused_and_nobody_is_moved(
    scope: Path, as_user: RunAs
) -> None:
    result = as_user("craterun run -m 32m -- true; echo $?; craterun run -- true", enter(scope))
    assert result.stdout.decode().split()[0] == "125"
    assert result.returncode == 0  # without limits nothing needs to be enabled
    (complaint,) = result.stderr.decode().splitlines()
    assert "processes in it" in complaint
    assert "Delegate=yes" in complaint
    assert not (scope / "craterun.supervisor").exists()
    print(complaint)


def test_without_delegation_the_remedy_is_told(as_user: RunAs) -> None:
    result = as_user("craterun run -m 32m -- true")
    assert result.returncode == 125
    assert b"systemd-run --user --scope" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_info_tells_what_was_delegated(scope: Path, as_user: RunAs) -> None:
    result = as_user("craterun info --format json", enter(scope))
    seen = {c["name"]: c for c in json.loads(result.stdout)["controllers"]}
    assert (seen["memory"]["works"], seen["memory"]["place"]) == ("yes", str(scope))
    offered = (scope / "cgroup.controllers").read_text().split()
    for name in ("memory", "pids", "cpu", "cpuset", "io"):
        assert (seen[name]["works"] == "yes") == (name in offered), seen[name]
