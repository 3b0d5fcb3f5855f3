"""update: other limits for a container that runs, all or nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, read_line
from tests.containers.test_limits import CPUSETS, MB, MEMORY_ON_2, limit

pytestmark = pytest.mark.cgroup_v2

cli = helpers.cli
make_gate = helpers.make_gate


def memory(live: helpers.Live) -> int:
    return int(limit(live, "memory.max", "memory.limit_in_bytes"))


def swap(live: helpers.Live) -> int:
    """Of both together, whichever the version counts."""
    found = int(limit(live, "memory.swap.max", "memory.memsw.limit_in_bytes"))
    return found + memory(live) if MEMORY_ON_2 else found


def test_limits_are_raised_and_lowered_while_it_runs(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", "64m", "--", *SLEEP)
    for size in (256, 32, 33, 1024, 16):
        assert cli.ok("update", "-m", f"{size}m", live.id) == f"{live.id}\n"
        assert (memory(live), swap(live)) == (size * MB, 2 * size * MB)
    cli.ok("update", "-m", "8m", "--memory-swap", "9m", live.id)
    assert (memory(live), swap(live)) == (8 * MB, 9 * MB)
    cli.ok("update", "-m", "128m", "--memory-swap", "128m", live.id)
    assert (memory(live), swap(live)) == (128 * MB, 128 * MB)


def test_quotas_are_changed_and_taken_away(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--cpus", "0.5", "--pids", "5", "--", *SLEEP)
    for words in ("2000 10000", "900000 1000000", "1000 5000"):
        cli.ok("update", "--cpu", words, live.id)
        quota, period = words.split()
        assert limit(live, "cpu.max", "cpu.cfs_quota_us") in (words, quota)
        assert limit(live, "cpu.max", "cpu.cfs_period_us") in (words, period)
    cli.ok("update", "--cpu", "max", "--pids", "max", live.id)
    assert limit(live, "cpu.max", "cpu.cfs_quota_us") in ("max 100000", "-1")
    assert limit(live, "pids.max", "pids.max") == "max"


def test_a_new_limit_binds_what_runs_already(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    cli.ok("update", "-m", "32m", "--pids", "1", live.id)
    hog = ("dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1")
    complaint = cli.refused("exec", live.id, "--", "true")
    assert "Resource temporarily unavailable" in complaint
    cli.ok("update", "--pids", "max", live.id)
    assert cli("exec", live.id, "--", *hog).returncode == 137


def test_of_several_limits_all_are_set_or_none(cli: Cli, rootfs: Path) -> None:
    start = ["-m", "64m", "--pids", "10", "--cpus", "0.5"]
    start += ["--cpuset-cpus", "0"] if CPUSETS else []
    live = cli.detach("--rootfs", str(rootfs), *start, "--", *SLEEP)
    before = cli.record(live.id)
    new = ("-m", "32m", "--pids", "20", "--cpus", "0.25", "--cpuset-cpus", "8000")
    assert "--cpuset-cpus" in cli.refused("update", *new, live.id)
    assert (memory(live), swap(live)) == (64 * MB, 128 * MB)
    assert limit(live, "pids.max", "pids.max") == "10"
    assert limit(live, "cpu.max", "cpu.cfs_quota_us") in ("50000 100000", "50000")
    assert json.loads(cli.ok("inspect", live.id))[0]["limits"] == before["limits"]


def test_memory_in_use_is_not_taken_away_by_killing(cli: Cli, rootfs: Path) -> None:
    # A file in memory cannot be dropped, and there is no swap for it in this container.
    script = (
        "dd if=/dev/zero of=/dev/shm/file bs=1M count=24 2>/dev/null; echo full; exec sleep 1000"
    )
    limits = ("-m", "48m", "--memory-swap", "48m", "--pids", "10")
    process = cli.start("run", "-a", "--rootfs", str(rootfs), *limits, "--", "sh", "-c", script)
    assert read_line(process) == "full"
    (container,) = cli.ids()
    live = cli.live(container)
    small = ("-m", "8m", "--memory-swap", "8m")
    complaint = cli.refused("update", "--pids", "20", *small, container)
    assert "uses more than that" in complaint
    assert (memory(live), swap(live)) == (48 * MB, 48 * MB)
    assert limit(live, "pids.max", "pids.max") == "10"
    if MEMORY_ON_2:
        assert limit(live, "memory.high", "") == "max"
    assert live.proc.exists()


def test_what_was_updated_is_on_record_and_stays_there(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", "64m", "--", *SLEEP)
    cli.ok("update", "--pids", "9", live.id)
    limits = {"memory": "64m", "pids": "9"}
    assert json.loads(cli.ok("inspect", live.id))[0]["limits"] == limits
    cli.ok("kill", live.id)
    assert cli.ok("wait", live.id) == "137\n"  # the supervisor has written its record once more
    assert json.loads(cli.ok("inspect", live.id))[0]["limits"] == limits
    assert json.loads(cli.ok("ps", "--format", "json"))[0]["limits"] == limits


def test_updates_at_the_same_time_lose_nothing(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    changes = {"memory": "64m", "pids": "9", "cpu_weight": "50", "cpu": "50000 100000"}
    running = [
        cli.start("update", f"--{name.replace('_', '-')}", value, live.id)
        for name, value in changes.items()
    ]
    for process in running:
        out, err = process.communicate(timeout=helpers.PATIENCE_SECONDS)
        assert (process.returncode, err) == (0, b""), out
    assert json.loads(cli.ok("inspect", live.id))[0]["limits"] == changes
    assert memory(live) == 64 * MB


def test_each_container_is_judged_on_its_own(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    finished = cli("update", "--pids", "5", "nobody", live.id)
    assert (finished.returncode, finished.stdout) == (125, f"{live.id}\n".encode())
    assert b"no container 'nobody'" in finished.stderr
    assert limit(live, "pids.max", "pids.max") == "5"


def test_what_has_ended_cannot_be_updated(cli: Cli, rootfs: Path) -> None:
    container = cli.ok("run", "--rootfs", str(rootfs), "--", "true").strip()
    assert "is not running" in cli.refused("update", "--pids", "5", container)
    assert not (cli.metadata(container).parent / "limits.json").exists()


def test_nothing_to_change_and_nobody_to_change_are_said(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", "64m", "--memory-swap", "64m", "--", *SLEEP)
    assert "nothing to change" in cli.refused("update", live.id)
    assert "which container" in cli.refused("update", "--pids", "5")
    assert "cannot be less" in cli.refused("update", "-m", "65m", live.id)


def test_a_damaged_file_of_limits_is_told_and_does_no_other_harm(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    (cli.metadata(live.id).parent / "limits.json").write_text("{")
    assert "limits.json is damaged" in cli.refused("update", "--pids", "5", live.id)
    cli.ok("rm", "--force", live.id)


def test_a_new_supervisor_knows_the_new_limits(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", "64m", "--", *SLEEP)
    cli.ok("update", "-m", "32m", live.id)
    keeper = live.status()["PPid"]
    supervisor = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    cli.ok("update", "--pids", "9", live.id)
    cli.ok("kill", live.id)
    assert cli.ok("wait", live.id) == "137\n"
    limits = {"memory": "32m", "pids": "9"}
    assert json.loads(cli.ok("inspect", live.id))[0]["limits"] == limits
