"""Limits as contents of files, and what the kernel may answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.errors import LimitError
from craterun.core.limit_files import (
    Content,
    Version,
    agrees,
    bfq_weight,
    contents,
    in_safe_order,
    limited,
    restoring,
    shares_of_weight,
)
from craterun.core.limits import MAX_PIDS, UNLIMITED, WEIGHTS, Limits

MB = 1 << 20
PAGE = 4096


def files(controller: str, version: Version, limits: Limits) -> list[tuple[str, str]]:
    return [(c.file, c.value) for c in contents(controller, version, limits)]


EXPECTED = [
    (Limits(memory=64 * MB), "memory",
     [("memory.max", f"{64 * MB}"), ("memory.swap.max", f"{64 * MB}")],
     [("memory.limit_in_bytes", f"{64 * MB}"), ("memory.memsw.limit_in_bytes", f"{128 * MB}")]),
    (Limits(memory=64 * MB, memory_swap=64 * MB), "memory",
     [("memory.max", f"{64 * MB}"), ("memory.swap.max", "0")],
     [("memory.limit_in_bytes", f"{64 * MB}"), ("memory.memsw.limit_in_bytes", f"{64 * MB}")]),
    (Limits(memory=MB, memory_swap=UNLIMITED), "memory",
     [("memory.max", f"{MB}"), ("memory.swap.max", "max")],
     [("memory.limit_in_bytes", f"{MB}"), ("memory.memsw.limit_in_bytes", "-1")]),
    (Limits(memory=UNLIMITED), "memory",
     [("memory.max", "max"), ("memory.swap.max", "max")],
     [("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")]),
    (Limits(memory_reservation=MB), "memory",
     [("memory.low", f"{MB}")], [("memory.soft_limit_in_bytes", f"{MB}")]),
    (Limits(pids=5), "pids", [("pids.max", "5")], [("pids.max", "5")]),
    (Limits(pids=UNLIMITED), "pids", [("pids.max", "max")], [("pids.max", "max")]),
    (Limits(cpu_quota=5000, cpu_period=10_000, cpu_weight=100), "cpu",
     [("cpu.max", "5000 10000"), ("cpu.weight", "100")],
     [("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "5000"), ("cpu.shares", "1024")]),
    (Limits(cpu_quota=UNLIMITED), "cpu",
     [("cpu.max", "max 100000")],
     [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "-1")]),
    (Limits(cpuset_cpus="0-1", cpuset_mems="0"), "cpuset",
     [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")],
     [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
    (Limits(io_weight=10_000), "io",
     [("io.bfq.weight", "1000"), ("io.weight", "default 10000")],
     [("blkio.bfq.weight", "1000")]),
    (Limits(io_max=("8:0 rbps=1m wiops=max",)), "io",
     [("io.max", "8:0 rbps=1048576 wiops=max")],
     [("blkio.throttle.read_bps_device", "8:0 1048576"),
      ("blkio.throttle.write_iops_device", "8:0 0")]),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "controller", "second", "first"), EXPECTED)
def test_what_is_written_for_both_versions(
    limits: Limits,
    controller: str,
    second: list[tuple[str, str]],
    first: list[tuple[str, str]],
) -> None:
    assert files(controller, 2, limits) == second
    assert files(controller, 1, limits) == first
    assert controller in limited(limits)


def test_a_controller_that_nothing_is_asked_of_is_told_nothing() -> None:
    for controller in ("memory", "pids", "cpu", "cpuset", "io"):
        for version in (1, 2):
            assert contents(controller, 1 if version == 1 else 2, Limits()) == ()
    assert limited(Limits()) == {}


def test_swap_that_was_not_asked_about_may_go_unaccounted() -> None:
    for version in (1, 2):
        which: Version = 1 if version == 1 else 2
        implied = contents("memory", which, Limits(memory=MB))[1]
        asked = contents("memory", which, Limits(memory=MB, memory_swap=MB))[1]
        assert (implied.optional, asked.optional) == (True, False)
        assert "does not account swap" in asked.absent


def test_the_whole_group_cannot_be_killed_by_version_1() -> None:
    assert files("memory", 2, Limits(oom_group=True)) == [("memory.oom.group", "1")]
    assert files("memory", 1, Limits(oom_group=False)) == []
    with pytest.raises(LimitError, match="version 1"):
        contents("memory", 1, Limits(oom_group=True))


@given(st.integers(*WEIGHTS))
def test_shares_stay_in_their_range_and_keep_the_order(weight: int) -> None:
    assert 2 <= shares_of_weight(weight) <= 262_144
    assert shares_of_weight(weight) <= shares_of_weight(weight + 1)
    assert 1 <= bfq_weight(weight) <= 1000


def test_the_defaults_of_both_versions_correspond() -> None:
    assert (shares_of_weight(100), shares_of_weight(1), shares_of_weight(10_000)) == (
        1024, 10, 102_400,
    )  # fmt: skip
    assert bfq_weight(100) == 100


# --- read back ------------------------------------------------------------------------------------

UNLIMITED_1 = str((1 << 63) // PAGE * PAGE - PAGE)

ANSWERS = [
    ("bytes", "8192", "8192", True),
    ("bytes", "8193", "8192", True),  # pages
    ("bytes", "8193", "12288", False),
    ("bytes", "8192", "4096", False),
    ("bytes", "max", "max", True),
    ("bytes", "-1", UNLIMITED_1, True),
    ("bytes", "8192", UNLIMITED_1, False),
    ("bytes", "max", "8192", False),
    ("bytes", "8192", "", False),
    ("exact", "50000 100000", "50000 100000", True),
    ("exact", "50000 100000", "max 100000", False),
    ("exact", str(MAX_PIDS), "max", False),
    ("set", "0,1", "0-1", True),
    ("set", "0-1", "0", False),
    ("set", "0-1", "", False),
    ("weight", "default 50", "default 50\n8:0 70", True),
    ("weight", "50", "50", True),
    ("weight", "50", "default 50", True),
    ("weight", "50", "", False),
    ("weight", "default 50", "default 100", False),
    ("device", "8:0 rbps=5", "8:16 rbps=5 wbps=max\n8:0 rbps=5 wbps=max", True),
    ("device", "8:0 rbps=5", "8:16 rbps=5 wbps=max", False),
    ("device", "8:0 rbps=max wiops=7", "8:0 rbps=max wbps=max riops=max wiops=7", True),
    ("device", "8:0 rbps=max", "", True),
    ("device", "8:0 rbps=max", "8:0 rbps=7", False),
    ("device", "8:0 5", "8:0 5", True),
    ("device", "8:0 5", "8:0 6", False),
    ("device", "8:0 0", "8:16 6", True),
    ("device", "8:0 0", "8:0 6", False),
]


@pytest.mark.parametrize(("kind", "wanted", "found", "same"), ANSWERS)
def test_rounding_is_accepted_and_a_difference_is_not(
    kind: str, wanted: str, found: str, same: bool
) -> None:
    assert agrees(kind, wanted, found, PAGE) is same  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "value", "before", "back"),
    [
        ("bytes", "1", "max", "max"),
        ("set", "0", "", "\n"),
        ("weight", "default 5", "default 100\n8:0 50", "default 100"),
        ("device", "8:0 rbps=1 wiops=2", "8:16 rbps=3\n8:0 rbps=9 wbps=8", "8:0 rbps=9 wiops=max"),
        ("device", "8:0 rbps=1", "", "8:0 rbps=max"),
        ("device", "8:0 5", "8:0 7\n8:16 3", "8:0 7"),
        ("device", "8:0 5", "8:16 3", "8:0 0"),
    ],
)
def test_what_puts_a_file_back(kind: str, value: str, before: str, back: str) -> None:
    content = Content("--x", "file", value, kind)  # type: ignore[arg-type]
    assert restoring(content, before) == back


# --- order ----------------------------------------------------------------------------------------


@given(
    st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 1000)
)  # fmt: skip
def test_memory_never_exceeds_memory_and_swap_on_the_way(
    old: int, old_swap: int, new: int, new_swap: int
) -> None:
    state = {
        "memory.limit_in_bytes": old * PAGE,
        "memory.memsw.limit_in_bytes": (old + old_swap) * PAGE,
    }
    changes = contents("memory", 1, Limits(memory=new * PAGE, memory_swap=(new + new_swap) * PAGE))
    for change in in_safe_order(list(changes), {k: str(v) for k, v in state.items()}):
        state[change.file] = int(change.value)
        assert state["memory.limit_in_bytes"] <= state["memory.memsw.limit_in_bytes"]


@given(
    st.integers(1000, 10**6), st.integers(1000, 10**6), st.integers(1000, 10**6),
    st.integers(1000, 10**6),
)  # fmt: skip
def test_no_more_processor_on_the_way_than_at_both_ends(
    old: int, old_period: int, new: int, new_period: int
) -> None:
    state = {"cpu.cfs_quota_us": old, "cpu.cfs_period_us": old_period}
    before = {key: str(value) for key, value in state.items()}
    changes = contents("cpu", 1, Limits(cpu_quota=new, cpu_period=new_period))
    for change in in_safe_order(list(changes), before):
        state[change.file] = int(change.value)
        share = state["cpu.cfs_quota_us"] / state["cpu.cfs_period_us"]
        assert share <= max(old / old_period, new / new_period) * 1.000001
