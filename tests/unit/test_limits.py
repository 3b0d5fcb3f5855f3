"""How limits are written, and what is refused before any kernel is asked."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core import limits as m
from craterun.core.errors import UsageError
from craterun.core.limits import UNLIMITED, Limits
from craterun.core.spec import Spec, parse_cgroup_parent
from craterun.core.units import MAX_BYTES, format_bytes, parse_bytes

SIZES = {
    "0": 0, "4096": 4096, "64m": 64 << 20, "64M": 64 << 20, "64mb": 64 << 20, "64MiB": 64 << 20,
    "1g": 1 << 30, "1.5g": 3 << 29, "0.5k": 512, "512KiB": 512 << 10, "2t": 2 << 40, "1p": 1 << 50,
    "7b": 7, "1.50m": 3 << 19, "1.0": 1,
}  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_are_powers_of_1024_in_any_case(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-1", "negative"),
        ("-64m", "negative"),
        ("", "not a size"),
        ("m", "not a size"),
        ("64x", "not a size"),
        ("64 m", "not a size"),
        ("64mm", "not a size"),
        ("64i", "not a size"),
        ("64ib", "not a size"),
        ("1e6", "not a size"),
        ("0x10", "not a size"),
        ("+1m", "not a size"),
        ("1,5g", "not a size"),
        (".5g", "not a size"),
        ("٣m", "not a size"),
        ("64m\n", "not a size"),
        ("1.5", "not a whole number of bytes"),
        ("0.1k", "not a whole number of bytes"),
        ("8192p", "more than the kernel can count"),
        ("9" * 20, "more than the kernel can count"),
        ("9" * 5000, "not a size"),
        ("\x1b[2J", "not a size"),
    ],
)
def test_what_is_no_size_is_refused_with_its_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_bytes(text, "--memory")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@given(st.integers(0, MAX_BYTES))
def test_a_size_survives_being_printed(size: int) -> None:
    assert parse_bytes(format_bytes(size), "x") == size


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_bytes(text, "x")
    except UsageError as error:
        size, text = 0, str(error)
        assert text.isprintable()
    assert 0 <= size <= MAX_BYTES


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from(["", "k", "M", "GiB"]))
def test_fractions_are_exact(whole: int, thousandths: int, unit: str) -> None:
    factor = {"": 1, "k": 1 << 10, "M": 1 << 20, "GiB": 1 << 30}[unit]
    exact = (whole + Fraction(thousandths, 1000)) * factor
    text = f"{whole}.{thousandths:03}{unit}"
    if exact.denominator == 1:
        assert parse_bytes(text, "x") == exact
    else:
        with pytest.raises(UsageError):
            parse_bytes(text, "x")


def test_zero_memory_and_less_than_a_page_are_refused() -> None:
    with pytest.raises(UsageError, match="write max"):
        m.parse_memory("0", "--memory")
    with pytest.raises(UsageError, match="write 64m"):
        Limits(memory=64).check()
    Limits(memory=4096).check()


def test_max_and_for_swap_minus_one_mean_no_limit() -> None:
    assert m.parse_memory("max", "--memory") == UNLIMITED
    assert m.parse_memory_swap("-1") == m.parse_memory_swap("max") == UNLIMITED
    with pytest.raises(UsageError):
        m.parse_memory_swap("-2")


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(memory_swap=1 << 20), "needs --memory"),
        (Limits(memory=UNLIMITED, memory_swap=1 << 20), "needs --memory"),
        (Limits(memory=2 << 20, memory_swap=1 << 20), "together"),
        (Limits(memory=1 << 20, memory_reservation=2 << 20), "is more than"),
        (Limits(memory=-2), "page"),
        (Limits(memory=1 << 63), "not within"),
        (Limits(pids=0), "not within"),
        (Limits(pids=m.MAX_PIDS + 1), "not within"),
        (Limits(cpu_quota=999), "minimum"),
        (Limits(cpu_quota=1 << 44), "more than the kernel can count"),
        (Limits(cpu_quota=1000, cpu_period=999), "period"),
        (Limits(cpu_period=1000), "without a quota"),
        (Limits(cpu_weight=0), "not within"),
        (Limits(cpu_weight=-1), "not within"),
        (Limits(io_weight=10_001), "not within"),
        (Limits(cpuset_cpus="1-0"), "ascending"),
        (Limits(io_max=("8:0 rbps=1", "8:0 wbps=1")), "twice"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Limits, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        limits.check()


CPUS = {"0.5": 50_000, "2": 200_000, "0.01": 1000, "0.333333": 33_333, "max": UNLIMITED}


@pytest.mark.parametrize(("text", "quota"), CPUS.items())
def test_processors_become_a_quota(text: str, quota: int) -> None:
    assert m.parse_cpus(text) == (quota, 100_000)


@pytest.mark.parametrize(
    "text", ["", "0", "0.001", "-1", "1e3", "a", "1.2.3", "nan", "inf", "9" * 9, "9" * 10]
)
def test_what_is_no_number_of_processors_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--cpus"):
        m.parse_cpus(text)


QUOTAS = {
    "50000 100000": (50_000, 100_000),
    "50000": (50_000, 100_000),
    " 1000\t1000 ": (1000, 1000),
    "max": (UNLIMITED, 100_000),
    "max 50000": (UNLIMITED, 50_000),
}


@pytest.mark.parametrize(("text", "expected"), QUOTAS.items())
def test_quota_and_period_are_one_argument(text: str, expected: tuple[int, int]) -> None:
    assert m.parse_cpu(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a", "1 2 3", "50000,100000", "-1 100000", "50000 max", "0 100000", "999 1000",
     "50000 0", "50000 1000001", "0.5", "17592186044416 1000"],
)  # fmt: skip
def test_malformed_quotas_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--cpu"):
        m.parse_cpu(text)


@given(st.frozensets(st.integers(0, m.MAX_CPU), min_size=1))
def test_a_set_survives_being_printed(numbers: frozenset[int]) -> None:
    assert m.parse_set(m.format_set(numbers), "x") == numbers


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "2-1", "0 1", "0-8192", "1--2", "٣"])
def test_malformed_sets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--cpuset-cpus"):
        m.parse_set(text, "--cpuset-cpus")


def test_devices_and_their_keys() -> None:
    assert m.parse_io_max("/dev/sda rbps=10m wiops=100 riops=max") == (
        "/dev/sda",
        {"rbps": 10 << 20, "wiops": 100, "riops": UNLIMITED},
    )


@pytest.mark.parametrize(
    "text",
    ["", "/dev/sda", "sda rbps=1", "/dev/sda rbps", "/dev/sda rbps=", "/dev/sda rbps=0",
     "/dev/sda rbps=-1", "/dev/sda speed=1", "/dev/sda rbps=1 rbps=2", "8:0:1 rbps=1",
     "/dev/sda wiops=1k", "/dev/a,b rbps=1", "8 rbps=1"],
)  # fmt: skip
def test_malformed_devices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--io-max"):
        m.parse_io_max(text)


LIMITS = st.builds(
    Limits,
    memory=st.none() | st.integers(1 << 20, 1 << 40),
    memory_swap=st.none() | st.just(UNLIMITED),
    memory_reservation=st.none() | st.integers(4096, 1 << 20),
    pids=st.none() | st.just(UNLIMITED) | st.integers(1, m.MAX_PIDS),
    cpu_quota=st.none() | st.just(UNLIMITED) | st.integers(1000, m.MAX_QUOTA),
    cpu_weight=st.none() | st.integers(*m.WEIGHTS),
    cpuset_cpus=st.none() | st.frozensets(st.integers(0, 9), min_size=1).map(m.format_set),
    io_weight=st.none() | st.integers(*m.WEIGHTS),
    io_max=st.just(()) | st.just(("/dev/sda rbps=10m", "8:16 wiops=max")),
    oom_group=st.none() | st.booleans(),
)


@given(LIMITS)
def test_limits_survive_the_record(limits: Limits) -> None:
    limits.check()
    back = m.from_text(limits.as_text())
    assert back.as_text() == limits.as_text()
    assert back.merged(Limits()) == back


@pytest.mark.parametrize(
    "text",
    [{"memory": "lots"}, {"speed": "1"}, {"cpu": ""}, {"io_max": "x"}, {"memory_swap": "1m"}],
)
def test_an_edited_record_is_refused(text: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        m.from_text(text)


def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    old = Limits(memory=1 << 20, cpu_quota=1000, cpu_period=5000, io_max=("8:0 rbps=1m wiops=5",))
    new = old.merged(Limits(cpu_quota=2000, io_max=("8:0 rbps=2m", "8:16 riops=1")))
    assert new == Limits(
        memory=1 << 20, cpu_quota=2000, io_max=("8:0 rbps=2m wiops=5", "8:16 riops=1")
    )
    assert old.merged(Limits(memory=UNLIMITED)).memory == UNLIMITED


def test_nothing_asked_for_is_nothing_on_record() -> None:
    assert Limits().as_text() == {}
    assert Limits().options() == []


def test_the_command_lines_options_say_the_same() -> None:
    limits = Limits(memory=64 << 20, cpu_quota=5000, oom_group=False, io_max=("8:0 rbps=1m",))
    assert limits.options() == [
        "--memory=64m", "--cpu=5000 100000", "--io-max=8:0 rbps=1m", "--no-oom-group",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "/", "..", "a/../b", "../x", "a/..", ".", "a/./b", "a\0b"])
def test_a_parent_cgroup_that_is_none_or_leads_out_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cgroup_parent(text)


@pytest.mark.parametrize("text", ["a/b", "/a/b", "a//b/", "/a/b//"])
def test_a_parent_cgroup_is_a_path_from_the_root(text: str) -> None:
    assert parse_cgroup_parent(text) == "a/b"


@pytest.mark.parametrize("value", [-1001, 1001])
def test_an_oom_score_beyond_the_kernels_is_refused(value: int) -> None:
    with pytest.raises(UsageError, match="--oom-score-adj"):
        Spec(command=("true",), oom_score_adj=value).check()
    Spec(command=("true",), oom_score_adj=1000 if value > 0 else -1000).check()
