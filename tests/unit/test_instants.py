"""Points in time: as typed, as printed, and back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.errors import UsageError
from craterun.core.instants import instant, nanoseconds, parse_instant, rfc3339

SECOND = 10**9
NOW = 1_800_000_000 * SECOND + 5


@pytest.mark.parametrize(
    ("text", "ago"),
    [("10m", 600), ("1h30m", 5400), ("0s", 0), ("2d", 172800), ("1.5s", 1.5), ("90s", 90)],
)
def test_a_duration_is_ago(text: str, ago: float) -> None:
    assert parse_instant(text, NOW) == NOW - int(ago * SECOND)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1700000000", 1_700_000_000 * SECOND),
        ("1700000000.000000001", 1_700_000_000 * SECOND + 1),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000_000),
        ("1970-01-01 00:00:00.000000007Z", 7),
        ("1970-01-01T00:01Z", 60 * SECOND),
    ],
)
def test_an_instant_is_exact_to_the_nanosecond(text: str, expected: int) -> None:
    assert parse_instant(text, NOW) == expected


def test_without_a_zone_it_is_local_time() -> None:
    local = parse_instant("2026-07-01T12:00:00", NOW)
    assert parse_instant("2026-07-01", NOW) == local - 12 * 3600 * SECOND
    assert abs(local - parse_instant("2026-07-01T12:00:00Z", NOW)) < 86400 * SECOND


@pytest.mark.parametrize(
    "text",
    ["", " ", "now", "10", "-5m", "5 m", "m", "10mm5", "2026-13-01", "2026-01-01T25:00Z", "1e3",
     "2026-01-01T00:00:00+99:00", "٣m", "123456789012345", "1h-5m", "nan", "\x1b[2J"],
)  # fmt: skip
def test_what_is_no_instant_is_refused_in_one_line(text: str) -> None:
    if text == "10":
        assert parse_instant(text, NOW) == 10 * SECOND
        return
    with pytest.raises(UsageError, match="no point in time") as caught:
        parse_instant(text, NOW)
    assert str(caught.value).isprintable()


@given(st.text(max_size=30))
def test_any_text_is_an_instant_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert isinstance(parse_instant(text, NOW), int)


@given(st.integers(0, 2**62))
def test_what_is_printed_is_read_as_the_same(time: int) -> None:
    assert parse_instant(rfc3339(time), NOW) == time
    assert nanoseconds(instant(time)) == time // 1000 * 1000
