"""Small values that people type and read: ids, names, signals, K=V, ages, hostnames, sizes.

Every parser here raises `UsageError` with the value in question, so that no later layer sees a
malformed one.
"""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime

from craterun.core.errors import UsageError, printable

ID_LENGTH = 16
# Compiled at their first use, and remembered by `re`: few commands need them all.
_ID = r"[0-9a-f]{16}\Z"
_ID_PREFIX = r"[0-9a-f]{1,16}\Z"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z"
_ENV_NAME = r"[^=\0]+\Z"
_SIZE = r"([0-9]{1,20})(?:\.([0-9]{1,20}))?(?:([kmgtp]?)(i?)b?)?\Z"
MAX_BYTES = (1 << 63) - 1 - (1 << 16)
"""The largest size: a little less than what the kernel takes for "no limit" with any page size."""
_BYTE_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
HOSTNAME_MAX = 64
"""Bytes that sethostname(2) takes, ``__NEW_UTS_LEN``."""


def new_id() -> str:
    """A fresh container id: 16 hex digits, 64 bits from the kernel's random source."""
    return os.urandom(ID_LENGTH // 2).hex()


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of a whole container id."""
    return re.match(_ID, text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether ``text`` could begin a container id."""
    return re.match(_ID_PREFIX, text) is not None


def is_name(text: str) -> bool:
    """Whether ``text`` has the form of a container's name."""
    return re.match(_NAME, text) is not None


def parse_name(text: str) -> str:
    """Check a container's name: letters, digits, ``_.-``, not starting with punctuation.

    The alphabet keeps a name safe as a file name, as an argument and on a terminal. A name in the
    form of a whole id is refused, since it could be taken for one.
    """
    if not is_name(text):
        raise UsageError(
            f"invalid name '{printable(text)}': use up to 128 letters, digits, '_', '.' or '-', "
            "beginning with a letter or digit"
        )
    if is_id(text):
        raise UsageError(f"invalid name {text!r}: 16 hex digits would be taken for an id")
    return text


def parse_hostname(text: str) -> str:
    """Check a hostname: 1 to 64 bytes of what a hostname may hold (hostname(7))."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > HOSTNAME_MAX:
        raise UsageError(f"hostname is {size} bytes long; the kernel takes at most {HOSTNAME_MAX}")
    if not re.match(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z", text):
        raise UsageError(
            f"invalid hostname '{printable(text)}': use letters, digits, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return text


def argument_bytes(text: str) -> bytes:
    """``text`` as execve(2) gets it: UTF-8, and bytes that the shell gave us as they were.

    :raises UsageError: it has a character that stands for no bytes, or a NUL
    """
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(
            f"'{printable(text[:60])}' has a character that no bytes stand for"
        ) from None
    if b"\0" in encoded:
        raise UsageError(f"'{printable(text[:60])}' contains a NUL character")
    return encoded


def parse_env(text: str) -> tuple[str, str]:
    """Split ``K=V``. The value may be empty and may contain further equals signs."""
    key, equals, value = text.partition("=")
    if not equals or not re.match(_ENV_NAME, key):
        raise UsageError(f"invalid environment entry '{printable(text)}': write it as KEY=VALUE")
    argument_bytes(text)
    return key, value


def parse_env_file(content: str, where: str) -> dict[str, str]:
    """Parse an env file: ``K=V`` per line; blank lines and those starting with ``#`` are skipped.

    A value is taken as it stands: no quoting, no expansion.
    """
    env = {}
    for number, ended_line in enumerate(content.split("\n"), 1):
        line = ended_line.rstrip("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key, value = parse_env(line)
        except UsageError as error:
            raise UsageError(f"{where}, line {number}: {error}") from None
        env[key] = value
    return env


def parse_signal(text: str) -> int:
    """A signal by number or name, with or without ``SIG``, in any case."""
    if text.isascii() and text.isdigit():
        if len(text) <= 3 and 1 <= int(text) <= signal.SIGRTMAX:
            return int(text)
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        known = signal.Signals.__members__.get(name)
        if known is not None:
            return int(known)
    raise UsageError(f"unknown signal '{printable(text)}': use a name like TERM or a number")


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``signal 40`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def age(then: datetime, now: datetime | None = None) -> str:
    """How long ago ``then`` was, in the largest unit that fits: ``12 seconds ago``."""
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    unit, size = next((u for u in units if seconds >= u[1]), units[-1])
    count = seconds // size
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def parse_bytes(text: str, what: str) -> int:
    """A size: ``4096``, ``64m``, ``1.5g``, ``512KiB``. All units are powers of 1024, in any case.

    :param what: whose size it is, for the message
    :raises UsageError: no size, negative, not a whole number of bytes, or too large to count
    """
    shown = printable(text[:40])
    if text[:1] == "-" and text[1:2].isdigit():
        raise UsageError(f"{what} '{shown}' is negative; write max for no limit")
    match = re.match(_SIZE, text, re.IGNORECASE)
    if match is None or (match[4] and not match[3]):
        raise UsageError(
            f"{what} '{shown}' is not a size: write bytes, or a number with k, m, g, t or p, "
            "as in 64m"
        )
    factor = 1 << 10 * (" kmgtp".index(match[3].lower()) if match[3] else 0)
    digits = match[2] or ""
    size, rest = divmod(int(match[1] + digits) * factor, int(f"1{'0' * len(digits)}"))
    if rest:
        raise UsageError(f"{what} '{shown}' is not a whole number of bytes; {size} would be")
    if size > MAX_BYTES:
        raise UsageError(f"{what} '{shown}' is more than the kernel can count")
    return size


def format_bytes(size: int) -> str:
    """``64m`` for 67108864: the largest unit that is exact. ``max`` for -1, no limit."""
    if size < 0:
        return "max"
    unit = 0
    while size and size % 1024 == 0 and unit < 5:
        size, unit = size // 1024, unit + 1
    return f"{size}{' kmgtp'[unit].strip()}"


def short_bytes(number: int) -> str:
    """``1.50MiB``: three significant digits, in units of 1024."""
    if number < 1000:
        return f"{number}B"
    value, power = number / 1024, 0
    while value >= 1000 and power < len(_BYTE_UNITS) - 1:
        value, power = value / 1024, power + 1
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}{_BYTE_UNITS[power]}"
