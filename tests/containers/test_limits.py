"""Limits that hold: each by its file in the kernel, and by its effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from craterun.linux.host import hierarchies, mount_table
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Live
from tests.leaks import cgroups_named

pytestmark = pytest.mark.cgroup_v2

cli = helpers.cli

HIERARCHIES = hierarchies(mount_table())
MEMORY_ON_2 = any(h.version == 2 and "memory" in h.controllers for h in HIERARCHIES)
MB = 1 << 20
CPUSETS = any("cpuset" in h.controllers for h in HIERARCHIES)
HOG = "dd if=/dev/zero of=/dev/null bs=128M count=1"


def limit(live: Live, name_2: str, name_1: str) -> str:
    """What the kernel has, in whichever of the container's cgroups there is such a file."""
    controller = name_2.partition(".")[0]
    for hierarchy in HIERARCHIES:
        old = "blkio" if controller == "io" else controller
        wanted = controller if hierarchy.version == 2 else old
        if wanted in hierarchy.controllers:
            name = name_2 if hierarchy.version == 2 else name_1
            # Not by Path.glob: it fails if another's cgroup goes away under it.
            walk = os.walk(hierarchy.mountpoint)
            (directory,) = [Path(path) for path, _, _ in walk if path.endswith(live.id)]
            return (directory / name).read_text().strip()
    raise AssertionError(f"no hierarchy serves {controller}")


# --- files ----------------------------------------------------------------------------------------


def test_every_limit_reaches_the_kernel(cli: Cli, rootfs: Path) -> None:
    live = cli.detach(
        "--rootfs", str(rootfs), "--memory", "64m", "--memory-swap", "96m",
        "--pids", "30", "--cpu", "50000 200000", "--cpu-weight", "200", "--", *SLEEP,
    )  # fmt: skip
    assert limit(live, "memory.max", "memory.limit_in_bytes") == str(64 * MB)
    both = 32 * MB if MEMORY_ON_2 else 96 * MB
    assert limit(live, "memory.swap.max", "memory.memsw.limit_in_bytes") == str(both)
    assert limit(live, "pids.max", "pids.max") == "30"
    assert limit(live, "cpu.max", "cpu.cfs_quota_us") in ("50000 200000", "50000")
    assert limit(live, "cpu.max", "cpu.cfs_period_us") in ("50000 200000", "200000")
    assert limit(live, "cpu.weight", "cpu.shares") in ("200", "2048")


def test_memory_alone_limits_swap_to_as_much(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", "64m", "--", *SLEEP)
    both = 64 * MB if MEMORY_ON_2 else 128 * MB
    assert limit(live, "memory.swap.max", "memory.memsw.limit_in_bytes") == str(both)


def test_memory_is_rounded_down_to_pages(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "-m", str(64 * MB + 5), "--", *SLEEP)
    assert limit(live, "memory.max", "memory.limit_in_bytes") == str(64 * MB)


def test_a_reservation_is_worth_something(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--memory-reservation", "8m", "--", *SLEEP)
    other = cli.detach("--rootfs", str(rootfs), "--memory-reservation", "16m", "--", *SLEEP)
    for each, size in ((live, 8 * MB), (other, 16 * MB)):
        assert limit(each, "memory.low", "memory.soft_limit_in_bytes") == str(size)
    if MEMORY_ON_2:
        # Nothing is protected more than what is above it.
        (above,) = {directory.parent for directory in live.cgroups()}
        assert int((above / "memory.low").read_text()) >= 24 * MB


def test_the_record_and_inspect_say_what_was_asked(cli: Cli, rootfs: Path) -> None:
    asked = ("--memory", "65536k", "--pids", "max", "--cpus", "0.25", "--cpu-weight", "50")
    live = cli.detach("--rootfs", str(rootfs), *asked, "--", *SLEEP)
    limits = cli.record(live.id)["limits"]
    assert limits == {"memory": "64m", "pids": "max", "cpu": "25000 100000", "cpu_weight": "50"}
    assert '"cpu": "25000 100000"' in cli.ok("inspect", live.id)


def test_without_limits_there_are_no_more_directories_than_before(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    found = {path.split("/craterun/")[0] for path in cgroups_named(live.id)}
    wanted = {"memory", "cpu", "pids"}
    if not any(h.version == 2 for h in HIERARCHIES):
        wanted |= {"cpuacct", "freezer"}
    assert found == {
        h.mountpoint for h in HIERARCHIES if h.version == 2 or wanted & {*h.controllers}
    }


# --- effects --------------------------------------------------------------------------------------


def test_a_process_that_takes_more_memory_is_killed(cli: Cli, rootfs: Path) -> None:
    arguments = ("run", "--rootfs", str(rootfs))
    assert cli(*arguments, "--", *HOG.split()).returncode == 0
    assert cli(*arguments, "-m", "32m", "--", *HOG.split()).returncode == 137


def test_files_in_memory_are_memory(cli: Cli, rootfs: Path) -> None:
    write = ("dd", "if=/dev/zero", "of=/dev/shm/file", "bs=1M", "count=48")
    arguments = ("run", "--rootfs", str(rootfs))
    assert cli(*arguments, "--", *write).returncode == 0
    assert cli(*arguments, "-m", "16m", "--", *write).returncode == 137


def test_a_child_that_is_killed_leaves_the_container_running(cli: Cli, rootfs: Path) -> None:
    script = f"{HOG} 2>/dev/null; echo $?"
    finished = cli(
        "run", "--attach", "--rootfs", str(rootfs), "-m", "32m", "--", "sh", "-c", script
    )
    assert (finished.returncode, finished.stdout) == (0, b"137\n")


def test_the_whole_container_is_killed_if_asked_for(cli: Cli, rootfs: Path) -> None:
    script = ("sh", "-c", f"{HOG} & wait; echo survived")
    arguments = ("--rootfs", str(rootfs), "-m", "32m", "--oom-group", "--", *script)
    if MEMORY_ON_2:
        finished = cli("run", "--attach", *arguments)
        assert (finished.returncode, finished.stdout) == (137, b"")
    else:
        assert "version 1" in cli.refused("run", *arguments)


def test_forks_are_refused_beyond_the_limit(cli: Cli, rootfs: Path) -> None:
    script = "i=0; while :; do sleep 1000 & i=$((i+1)); echo $i; done"
    finished = cli(
        "run", "--attach", "--rootfs", str(rootfs), "--pids", "7", "--", "sh", "-c", script
    )
    assert finished.stdout.split()[-1] == b"6"  # and the shell is the seventh
    assert b"fork" in finished.stderr
    assert finished.returncode != 0


def test_a_further_command_counts_as_well(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--pids", "4", "-m", "32m", "--", *SLEEP)
    assert cli("exec", live.id, "--", *HOG.split()).returncode == 137
    script = "sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & echo never"
    finished = cli("exec", live.id, "--", "sh", "-c", script)
    assert b"never" not in finished.stdout
    assert live.proc.exists()


def test_processor_time_is_limited_against_real_time(cli: Cli, rootfs: Path) -> None:
    # The shell goes on until it has had 0.3 s of a processor, of which it gets a fifth.
    script = (
        "read start rest </proc/uptime; spent=0; while [ $spent -lt 30 ]; do "
        "read line </proc/self/stat; set -- $line; spent=$((${14} + ${15})); done; "
        "read end rest </proc/uptime; echo $start $end"
    )
    finished = cli(
        "run", "--attach", "--rootfs", str(rootfs), "--cpus", "0.2", "--", "sh", "-c", script
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    start, end = map(float, finished.stdout.split())
    assert end - start > 0.3 / 0.2 / 2  # it can only take longer, but for what was unspent before


def test_the_limits_go_with_the_container(cli: Cli, rootfs: Path) -> None:
    every = ["-m", "32m", "--pids", "9", "--cpus", "1"]
    every += ["--cpuset-cpus", "0"] if CPUSETS else []
    container = cli.ok("run", "--rootfs", str(rootfs), *every, "--", "true").strip()
    assert cgroups_named(container) == []


# --- refused --------------------------------------------------------------------------------------

REFUSED = {
    "memory-negative": (("--memory=-1m",), "negative"),
    "memory-negative-apart": (("--memory", "-1m"), "negative"),
    "memory-forgotten": (("--memory", "--rm"), "not a size"),
    "cpus-negative": (("--cpus", "-1"), "number of processors"),
    "memory-zero": (("--memory", "0"), "no memory at all"),
    "memory-unit": (("--memory", "5q"), "not a size"),
    "memory-page": (("--memory", "64"), "write 64m"),
    "memory-fraction": (("--memory", "0.3k"), "whole number of bytes"),
    "memory-overflow": (("--memory", "9000000t"), "more than the kernel can count"),
    "swap-alone": (("--memory-swap", "64m"), "needs --memory"),
    "swap-less": (("-m", "64m", "--memory-swap", "32m"), "together"),
    "reservation": (("-m", "1m", "--memory-reservation", "2m"), "is more than"),
    "pids-zero": (("--pids", "0"), "--pids"),
    "pids-many": (("--pids", "9999999999"), "4194304"),
    "cpu-malformed": (("--cpu", "fast"), "QUOTA PERIOD"),
    "cpu-minimum": (("--cpu", "999 100000"), "minimum of 1000"),
    "cpu-period": (("--cpu", "5000 2000000"), "period"),
    "cpu-twice": (("--cpu", "5000", "--cpus", "1"), "same thing"),
    "cpus": (("--cpus", "none"), "number of processors"),
    "weight": (("--cpu-weight", "10001"), "10000"),
    "cpuset-malformed": (("--cpuset-cpus", "1-"), "ascending"),
    "cpuset-range": (("--cpuset-cpus", "0,8000"), "processor 8000 is not among"),
    "mems-range": (("--cpuset-mems", "77"), "memory node 77 is not among"),
    "io-malformed": (("--io-max", "fast"), "DEVICE KEY=N"),
    "io-missing": (("--io-max", "/dev/no-such rbps=1"), "No such file"),
    "io-character": (("--io-max", "/dev/null rbps=1"), "not a block device"),
    "io-number": (("--io-max", "4000:7 rbps=1"), "no block device"),
    "parent-missing": (("--cgroup-parent", "no/such"), "does not exist"),
    "parent-outside": (("--cgroup-parent", "a/../../b"), "without . and .."),
    "parent-empty": (("--cgroup-parent", ""), "must name a cgroup"),
    "oom-score": (("--oom-score-adj", "-1001"), "within -1000 and 1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_enforced_is_refused_before_anything_is_started(
    case: str, cli: Cli, rootfs: Path
) -> None:
    arguments, words = REFUSED[case]
    started = rootfs / "tmp" / "started"
    complaint = cli.refused(
        "run", "--rootfs", str(rootfs), *arguments, "--", "touch", "/tmp/started"
    )
    if case in ("cpuset-range", "mems-range") and not CPUSETS:
        words = "no cgroup hierarchy offers the cpuset controller"
    assert words in complaint
    assert not started.exists()
    assert cli.ids() == set()


def test_a_period_without_quotes_is_not_taken_for_a_command(cli: Cli) -> None:
    complaint = cli.refused("run", "--cpu", "50000", "100000", "--", "true")
    assert "--cpu '50000 100000'" in complaint


# --- from Python ----------------------------------------------------------------------------------

_LIBRARY = """
import json, sys, trio
from craterun import Limits, Spec, Supervisor
from craterun.client import Client

async def main():
    limits = Limits(memory=32 << 20, pids=9, cpu_quota=50000)
    hog = Spec(command=("dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"), limits=limits)
    async with Supervisor(sys.argv[1]) as supervisor:
        container = await supervisor.start(hog)
        codes = [(await container.wait()).exit_code]
    client = Client(sys.argv[1])
    codes.append((await client.wait(await client.run(hog))).exit_code)
    records = [observed.record.limits for observed in await client.containers()]
    print(json.dumps([codes, records]))

trio.run(main)
"""


def test_a_library_asks_for_the_same_limits(state_root: Path) -> None:
    limits = {"memory": "32m", "pids": "9", "cpu": "50000 100000"}
    assert helpers.run_python(_LIBRARY, state_root) == [[137, 137], [limits, limits]]


# --- what the OOM killer thinks -------------------------------------------------------------------


def test_the_oom_score_is_set_for_all_that_runs_inside(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--oom-score-adj", "321", "--", *SLEEP)
    assert (live.proc / "oom_score_adj").read_text() == "321\n"
    command = ("exec", live.id, "--", "cat", "/proc/self/oom_score_adj")
    assert cli.ok(*command) == "321\n"
    assert cli.record(live.id)["oom_score_adj"] == 321


def test_without_an_oom_score_the_callers_is_inherited(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert (live.proc / "oom_score_adj").read_text() == ours


def test_an_oom_score_that_is_not_ours_to_give_is_refused(cli: Cli, rootfs: Path) -> None:
    without = cli.behind("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-all")
    command = ("run", "--rootfs", str(rootfs), "--oom-score-adj", "-500", "--", "true")
    message = without.refused(*command)
    assert "oom_score_adj to -500" in message
    assert "CAP_SYS_RESOURCE" in message


def test_two_mebibytes_suffice_for_a_small_program(cli: Cli, rootfs: Path) -> None:
    # What it takes to make the container is not charged to it.
    finished = cli("run", "--rootfs", str(rootfs), "--memory", "2m", "--", "true")
    assert (finished.returncode, finished.stderr) == (0, b"")
