"""From the contents of cgroup files to figures."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.stats import (
    SOURCES,
    Source,
    cpu_nanoseconds,
    cpu_percent,
    figures,
    parse_flat,
    transferred,
)
from craterun.core.units import short_bytes

V1: dict[Source, bytes] = {
    (1, "memory.usage_in_bytes"): b"1048576\n",
    (1, "memory.max_usage_in_bytes"): b"2097152\n",
    (1, "memory.limit_in_bytes"): b"9223372036854771712\n",
    (1, "memory.stat"): b"cache 1\nrss 2\nshmem 3\ntotal_cache 500\ntotal_rss 7\ntotal_shmem 200\n",
    (1, "cpuacct.usage"): b"1500000000\n",
    (1, "cpu.stat"): b"nr_periods 10\nnr_throttled 4\nthrottled_time 250000000\n",
    (1, "pids.current"): b"3\n",
    (1, "pids.max"): b"max\n",
    (1, "blkio.throttle.io_service_bytes_recursive"): (
        b"8:0 Read 100\n8:0 Write 10\n8:0 Sync 5\n8:0 Total 110\n8:16 Read 1\nTotal 111\n"
    ),
}
V2: dict[Source, bytes] = {
    (2, "memory.current"): b"1048576\n",
    (2, "memory.peak"): b"2097152\n",
    (2, "memory.max"): b"max\n",
    (2, "memory.stat"): b"anon 7\nfile 500\nshmem 200\n",
    (2, "cpu.stat"): (
        b"usage_usec 1500000\nuser_usec 1\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\n"
    ),
    (2, "pids.current"): b"3\n",
    (2, "pids.max"): b"max\n",
    (2, "io.stat"): b"8:0 rbytes=100 wbytes=10 rios=3 wios=4 dbytes=9 dios=1\n8:16 rbytes=1\n",
}


@pytest.mark.parametrize("contents", [V1, V2], ids=["v1", "v2"])
def test_both_versions_tell_the_same(contents: dict[Source, bytes]) -> None:
    assert figures(contents) == {
        "memory_bytes": 1048576,
        "memory_peak_bytes": 2097152,
        "memory_limit_bytes": "max",
        "memory_anon_bytes": 7,
        "memory_cache_bytes": 300,
        "memory_tmpfs_bytes": 200,
        "cpu_seconds": 1.5,
        "cpu_periods": 10,
        "cpu_throttled_periods": 4,
        "cpu_throttled_seconds": 0.25,
        "pids": 3,
        "pids_limit": "max",
        "io_read_bytes": 101,
        "io_write_bytes": 10,
    }


def test_the_files_that_are_read_are_those_that_are_understood() -> None:
    read = {(version + 1, name) for pair in SOURCES.values() for version in (0, 1)
            for name in pair[version]}  # fmt: skip
    assert read == set(V1) | set(V2)


def test_what_the_host_does_not_give_is_unknown_and_not_zero() -> None:
    assert set(figures({}).values()) == {None}
    # Version 2 without any controller tells CPU time, and no throttling.
    few = figures({(2, "cpu.stat"): b"usage_usec 5\nuser_usec 5\nsystem_usec 0\n"})
    assert few["cpu_seconds"] == 5e-6
    assert few["cpu_throttled_seconds"] is None
    assert few["memory_bytes"] is None


def test_an_idle_device_counter_is_zero() -> None:
    assert transferred({(2, "io.stat"): b""}) == (0, 0)
    assert transferred({(1, "blkio.throttle.io_service_bytes_recursive"): b"Total 0\n"}) == (0, 0)


def test_limits_are_numbers_or_max() -> None:
    assert figures({(2, "memory.max"): b"4096\n"})["memory_limit_bytes"] == 4096
    assert figures({(1, "memory.limit_in_bytes"): b"4096\n"})["memory_limit_bytes"] == 4096
    assert figures({(1, "pids.max"): b"10\n"})["pids_limit"] == 10


def test_hybrid_hosts_may_mix_both_versions() -> None:
    mixed = {
        (1, "cpuacct.usage"): b"2000000000\n",
        (2, "cpu.stat"): b"usage_usec 1\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
    }
    assert cpu_nanoseconds(mixed) == 2_000_000_000
    assert figures(mixed)["cpu_throttled_periods"] == 2


def test_per_cent_is_of_one_cpu_and_needs_two_samples() -> None:
    assert cpu_percent(None, (10, 5)) is None
    assert cpu_percent((10, 5), None) is None
    assert cpu_percent((10, 5), (10, 9)) is None
    assert cpu_percent((0, 0), (1_000_000_000, 2_500_000_000)) == 250.0
    assert cpu_percent((0, 7), (1_000_000_000, 7)) == 0.0


@given(st.dictionaries(st.sampled_from([*V1, *V2]), st.binary(max_size=200)))
def test_no_content_breaks_it(contents: dict[Source, bytes]) -> None:
    for name, value in figures(contents).items():
        assert value is None or value == "max" or isinstance(value, (int, float)), name


@given(st.dictionaries(st.text(string.ascii_letters + "_", min_size=1), st.integers(0, 2**64)))
def test_flat_keyed_files_are_read_back(expected: dict[str, int]) -> None:
    content = "".join(f"{key} {value}\n" for key, value in expected.items())
    assert parse_flat(content.encode()) == expected


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0B"), (999, "999B"), (1000, "0.98KiB"), (1024, "1.00KiB"), (1536, "1.50KiB"),
        (65536, "64.0KiB"), (512 * 1024, "512KiB"), (1024**2, "1.00MiB"), (5 * 2**30, "5.00GiB"),
        (2**63, "8.00EiB"), (2**80, "1048576EiB"),
    ],
)  # fmt: skip
def test_sizes_as_people_read_them(number: int, text: str) -> None:
    assert short_bytes(number) == text


@given(st.integers(0, 2**63))
def test_sizes_are_short_and_close(number: int) -> None:
    text = short_bytes(number)
    assert len(text) <= 8
    digits = text.rstrip("KMGTPEiB")
    units = {"B": 1, **{f"{u}iB": 1024**p for p, u in enumerate("KMGTPE", 1)}}
    assert abs(float(digits) * units[text.removeprefix(digits)] - number) <= 0.01 * number
