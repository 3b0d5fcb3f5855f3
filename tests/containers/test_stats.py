"""stats: figures against the cgroup files and against what a container is known to do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from craterun.linux.host import hierarchies, is_in_memory, mount_table
from tests.containers import helpers
from tests.containers.helpers import (
    PATIENCE_SECONDS,
    SLEEP,
    Cli,
    Gate,
    Live,
    lines_of,
    mount_namespace,
)
from tests.containers.streams_helpers import cgroups_of, stat_fields

cli = helpers.cli
make_gate = helpers.make_gate
v2 = pytest.mark.cgroup_v2

MIB = 1024 * 1024
COLUMNS = [
    "CONTAINER", "CPU %", "MEMORY", "LIMIT", "PIDS", "PEAK", "CACHE", "CPU TIME", "THROTTLED",
    "READ", "WRITTEN",
]  # fmt: skip
KEYS = {
    "id", "name", "time", "memory_bytes", "memory_peak_bytes", "memory_limit_bytes",
    "memory_anon_bytes", "memory_cache_bytes", "memory_tmpfs_bytes", "cpu_seconds", "cpu_percent",
    "cpu_periods", "cpu_throttled_periods", "cpu_throttled_seconds", "pids", "pids_limit",
    "io_read_bytes", "io_write_bytes",
}  # fmt: skip


@pytest.fixture(autouse=True)
def io_controller() -> Iterator[None]:
    """Version 2 counts disk use only where that is enabled above, which craterun leaves alone."""
    parents = [
        Path(hierarchy.mountpoint, "craterun")
        for hierarchy in hierarchies(mount_table())
        if hierarchy.version == 2 and "io" in hierarchy.controllers
    ]
    for parent in parents:
        parent.mkdir(exist_ok=True)
        (parent.parent / "cgroup.subtree_control").write_text("+io")
        (parent / "cgroup.subtree_control").write_text("+io")
    yield
    for parent in parents:
        with suppress(OSError):
            parent.rmdir()


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container named ``one`` that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)


def sample(cli: Cli, *arguments: str) -> dict[str, Any]:
    """The figures of the only container that is asked for, in one sample."""
    output = cli.ok("stats", "--no-stream", "--interval", "0", "--format", "json", *arguments)
    (line,) = output.splitlines()
    usage = json.loads(line)
    assert isinstance(usage, dict)
    assert set(usage) == KEYS
    return usage


def names_in(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Of the containers in a stream of JSON lines."""
    return (json.loads(line)["name"] for line in lines_of(process))


def read(container_id: str, *names: str) -> str:
    """The content of the first of these cgroup files that the container has."""
    for directory in cgroups_of(container_id):
        for name in names:
            path = Path(directory, name)
            if path.exists():
                return path.read_text().strip()
    raise AssertionError(f"none of {names} in {cgroups_of(container_id)}")


# --- figures --------------------------------------------------------------------------------------


@v2
def test_figures_are_those_of_the_cgroup_files(cli: Cli, live: Live) -> None:
    usage = sample(cli, "one")
    assert (usage["id"], usage["name"]) == (live.id, "one")
    assert usage["memory_bytes"] == int(read(live.id, "memory.usage_in_bytes", "memory.current"))
    assert usage["memory_peak_bytes"] == int(
        read(live.id, "memory.max_usage_in_bytes", "memory.peak")
    )
    assert usage["memory_peak_bytes"] >= usage["memory_bytes"] > 0
    assert usage["memory_limit_bytes"] == "max"
    assert usage["pids"] == int(read(live.id, "pids.current")) == 1
    assert usage["pids_limit"] == read(live.id, "pids.max") == "max"
    assert usage["cpu_percent"] is None
    assert usage["cpu_periods"] == usage["cpu_throttled_periods"] == 0
    assert 0 < usage["cpu_seconds"] < 60


@v2
def test_limits_are_shown(cli: Cli, live: Live) -> None:
    for directory in cgroups_of(live.id):
        for name, value in (
            ("memory.limit_in_bytes", 64 * MIB), ("memory.max", 64 * MIB), ("pids.max", 7),
        ):  # fmt: skip
            path = Path(directory, name)
            if path.exists():
                path.write_text(str(value))
    usage = sample(cli, "one")
    assert (usage["memory_limit_bytes"], usage["pids_limit"]) == (64 * MIB, 7)
    row = cli.ok("stats", "--no-stream", "--interval", "0").splitlines()[1]
    assert "64.0MiB" in row
    assert "1/7" in row


@v2
def test_memory_is_told_apart_by_what_it_is_for(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    """32 MiB in a tmpfs, 16 MiB of a file that was just written, 8 MiB in a process."""
    up, go = make_gate(rootfs / "up"), make_gate(rootfs / "go")
    script = (
        "dd if=/dev/zero of=/dev/shm/a bs=1M count=32; dd if=/dev/zero of=/cached bs=1M count=16;"
        " x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo up >/up; read y </go;"
        " rm /dev/shm/a; x=; echo up >/up; read y </go"
    )
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    up.wait()
    # Where the directory of the tests is on a tmpfs itself, so is the file.
    files, others = (0, 16) if is_in_memory(str(rootfs)) else (16, 0)
    usage = sample(cli, live.id)
    assert (32 + others) * MIB <= usage["memory_tmpfs_bytes"] < (34 + others) * MIB
    assert 8 * MIB <= usage["memory_anon_bytes"] + MIB < 48 * MIB
    assert usage["memory_cache_bytes"] >= (files - 4) * MIB  # the kernel may have dropped some
    assert usage["memory_bytes"] > 52 * MIB
    peak = usage["memory_peak_bytes"]
    assert peak > 52 * MIB
    go.open()
    up.wait()
    usage = sample(cli, live.id)
    assert usage["memory_tmpfs_bytes"] < (2 + others) * MIB
    assert usage["memory_bytes"] < peak - 30 * MIB
    assert usage["memory_peak_bytes"] >= peak
    go.open()
    cli.ok("wait", live.id)


@v2
def test_processes_and_threads_are_counted(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    gate = make_gate(rootfs / "gate")
    script = "for i in 1 2 3 4 5; do sleep 100000 & done; echo up >/gate; wait"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    gate.wait()
    assert sample(cli, live.id)["pids"] == 6


@v2
def test_cpu_time_is_that_of_the_process(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    gate, block = make_gate(rootfs / "gate"), make_gate(rootfs / "block")
    script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo up >/gate; read x </block"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    gate.wait()
    fields = stat_fields(live.pid)
    process = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    seconds = sample(cli, live.id)["cpu_seconds"]
    assert process > 0
    # The cgroup counts the start, too, and to the nanosecond instead of by ticks.
    assert process - 0.05 <= seconds <= 1.5 * process + 1
    block.open()
    cli.ok("wait", live.id)


@v2
def test_a_busy_container_has_per_cents_and_a_paused_one_none(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", "while :; do :; done")
    arguments = ("stats", "--no-stream", "--interval", "0.3", "--format", "json", live.id)
    assert json.loads(cli.ok(*arguments))["cpu_percent"] > 0
    cli.ok("pause", live.id)
    assert json.loads(cli.ok(*arguments))["cpu_percent"] == 0


@v2
def test_throttling_is_counted_where_a_limit_holds(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", "while :; do :; done")
    for directory in map(Path, cgroups_of(live.id)):
        if (directory / "cpu.cfs_quota_us").exists():
            (directory / "cpu.cfs_period_us").write_text("10000")
            (directory / "cpu.cfs_quota_us").write_text("1000")
        elif (directory / "cpu.max").exists():
            (directory / "cpu.max").write_text("1000 10000")
    following = cli.start("stats", "--format", "json", "--interval", "0.1", live.id)
    for line in lines_of(following):  # a sample each, until the kernel has throttled it
        usage = json.loads(line)
        if usage["cpu_throttled_periods"]:
            break
    assert usage["cpu_throttled_seconds"] > 0
    assert usage["cpu_periods"] >= usage["cpu_throttled_periods"]


@v2
def test_io_is_counted_where_the_controller_is_and_a_dash_elsewhere(cli: Cli, live: Live) -> None:
    usage = sample(cli, "one")
    counted = any(
        Path(d, name).exists()
        for d in cgroups_of(live.id)
        for name in ("io.stat", "blkio.throttle.io_service_bytes_recursive")
    )
    row = cli.ok("stats", "--no-stream", "--interval", "0").splitlines()[1]
    if counted:
        assert usage["io_read_bytes"] >= 0
    else:
        assert (usage["io_read_bytes"], usage["io_write_bytes"]) == (None, None)
        assert row.split()[-2:] == ["-", "-"]


def test_the_v1_io_controller_is_read_where_a_container_is_in_it(cli: Cli, live: Live) -> None:
    own = Path(f"/sys/fs/cgroup/blkio/craterun/{live.id}")
    own.mkdir(parents=True)
    try:
        (own / "cgroup.procs").write_text(str(live.pid))
        usage = sample(cli, "one")
        assert (usage["io_read_bytes"], usage["io_write_bytes"]) == (0, 0)
    finally:
        cli.ok("rm", "--force", "one")
        assert not own.exists(), "whatever has the container's name goes with it"


def test_a_host_without_cgroups_gives_dashes_and_no_zeros(cli: Cli, rootfs: Path) -> None:
    with mount_namespace("mount -t tmpfs none /sys/fs/cgroup") as aside:
        inside = cli.behind(*aside.enter)
        inside.ok("run", "--detach", "--rootfs", str(rootfs), "--name", "bare", "--", *SLEEP)
        usage = sample(inside, "bare")
        known = {key for key, value in usage.items() if value is not None}
        assert known == {"id", "name", "time"}
        row = inside.ok("stats", "--no-stream").splitlines()[1]
        assert row.split() == ["bare", *["-"] * (len(COLUMNS) - 1)]
        inside.ok("rm", "--force", "bare")


# --- who is shown ---------------------------------------------------------------------------------


@v2
def test_new_containers_appear_and_ended_ones_leave(cli: Cli, rootfs: Path, live: Live) -> None:
    following = cli.start("stats", "--format", "json", "--interval", "0.1")
    names = names_in(following)
    assert next(names) == "one"
    cli.detach("--rootfs", str(rootfs), "--name", "two", "--", *SLEEP)
    assert "two" in names  # reads on until it comes
    cli.ok("rm", "--force", "one")
    # Whatever was sampled before is in the pipe; then only one is left.
    last = [next(names) for _ in range(5)]
    while last != ["two"] * 5:
        last = [*last[1:], next(names)]
    assert following.poll() is None


def test_the_stream_of_named_ones_ends_with_the_last_of_them(cli: Cli, live: Live) -> None:
    following = cli.start("stats", "--format", "json", "--interval", "0.1", "one")
    next(lines_of(following))
    cli.ok("kill", "one")
    output, errors = following.communicate(timeout=PATIENCE_SECONDS)
    assert (following.returncode, errors) == (0, b"")
    assert all(json.loads(line)["name"] == "one" for line in output.splitlines())


def test_those_that_do_not_run_are_named_and_the_others_shown(cli: Cli, live: Live) -> None:
    finished = cli("stats", "--no-stream", "nobody", "one")
    assert finished.returncode == 125
    assert b"no container 'nobody'" in finished.stderr
    assert b"one " in finished.stdout
    cli.ok("kill", "one")
    cli.ok("wait", "one")
    assert cli.refused("stats", "one") == f"container {live.id} is not running"
    assert cli.ok("stats", "--no-stream").split() == " ".join(COLUMNS).split()


@pytest.mark.parametrize("interval", ["0", "-1", "0.01", "nan", "inf", "1e9"])
def test_an_interval_that_makes_no_sense_is_refused(cli: Cli, interval: str) -> None:
    assert "is not between 0.1 and 86400 seconds" in cli.refused("stats", f"--interval={interval}")


def test_a_damaged_record_does_not_end_the_stream(cli: Cli, live: Live, rootfs: Path) -> None:
    folder = cli.state_root / ("ab" * 8)
    folder.mkdir()
    (folder / "metadata.json").write_text("{")
    assert sample(cli)["name"] == "one"
    folder.joinpath("metadata.json").unlink()
    folder.rmdir()
