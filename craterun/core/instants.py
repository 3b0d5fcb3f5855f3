"""Points in time as people type them and as programs read them, in nanoseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from craterun.core.errors import UsageError, printable

_SECOND = 1_000_000_000
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
# Compiled at their first use: most commands know no time.
_AGO = r"(?:\d{1,9}(?:\.\d{1,9})?[dhms])+\Z"
_PART = r"(\d+(?:\.\d+)?)([dhms])"
_EPOCH = r"(\d{1,11})(?:\.(\d{1,9}))?\Z"
_RFC3339 = (
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)?)?\Z"
)
_START = datetime(1970, 1, 1, tzinfo=UTC)


def parse_instant(text: str, now: int) -> int:
    """``10m`` or ``1h30m`` (ago), RFC 3339 (without zone: local time), or seconds since the epoch.

    :param now: nanoseconds since the epoch
    :raises UsageError: it is none of these
    """
    if re.match(_AGO, text, re.ASCII):
        parts = (
            (float(number), _UNITS[unit]) for number, unit in re.findall(_PART, text, re.ASCII)
        )
        return now - round(sum(number * unit for number, unit in parts) * _SECOND)
    if match := re.match(_EPOCH, text, re.ASCII):
        return int(match[1]) * _SECOND + _fraction(match[2])
    if match := re.match(_RFC3339, text, re.ASCII):
        day, clock, fraction, zone = match.groups()
        try:
            zone = "+00:00" if zone in ("Z", "z") else zone or ""
            then = datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone}")
            if then.tzinfo is None:
                then = then.astimezone()
            return nanoseconds(then) + _fraction(fraction)
        except (ValueError, OverflowError, OSError):
            pass  # a month 13, an hour 25, a zone beyond a day, the year 1 in local time
    raise UsageError(
        f"'{printable(text)}' is no point in time: write 10m or 1h30m (ago), "
        "2026-01-31T12:00:00Z, or seconds since 1970"
    )


def _fraction(digits: str | None) -> int:
    return int((digits or "0").ljust(9, "0"))


def nanoseconds(then: datetime) -> int:
    """Since the epoch, exactly: a float would round them."""
    return (then - _START) // timedelta(microseconds=1) * 1000


def instant(time_ns: int) -> datetime:
    """The same as a datetime in UTC, in microseconds."""
    return _START + timedelta(microseconds=time_ns // 1000)


def rfc3339(time_ns: int) -> str:
    """``2026-01-31T12:00:00.123456789Z``, always nine digits, so that text sorts like time."""
    seconds, rest = divmod(time_ns, _SECOND)
    return f"{_START + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
