"""What a container may use at most: `Limits`, how people write them, and what makes no sense.

Which files of the kernel they end up in is told by `core.limit_files`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import msgspec

from craterun.core.errors import UsageError, printable
from craterun.core.units import MAX_BYTES, format_bytes, parse_bytes

UNLIMITED = -1
"""In a field: no limit, asked for on purpose; None: nothing was asked."""

SMALLEST_MEMORY = 4096
"""Bytes. The kernel counts in pages; none is smaller than this."""
MAX_PIDS = 4194304
"""The kernel's PID_MAX_LIMIT on 64-bit machines; pids.max takes no more."""
DEFAULT_PERIOD = 100_000
MIN_QUOTA = 1000
PERIODS = (1000, 1_000_000)
"""Microseconds: the kernel's bounds of a period (Documentation/scheduler/sched-bwc.rst)."""
MAX_QUOTA = (1 << 44) - 1
"""Microseconds: the kernel's ``max_bw_runtime_us``."""
WEIGHTS = (1, 10_000)
MAX_CPU = 8191
"""The highest number of a processor or memory node that any kernel is built for."""
IO_KEYS = ("rbps", "wbps", "riops", "wiops")

_NUMBER = re.compile(r"[0-9]{1,20}\Z")
_DECIMAL = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?\Z")
_DEVICE = re.compile(r"(?:/dev/[^\s,]+|[0-9]{1,4}:[0-9]{1,7})\Z")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits as asked for. A field that is None was not asked for; -1 means no limit.

    :ivar memory: bytes
    :ivar memory_swap: bytes of memory and swap together. None while ``memory`` is set: twice
        ``memory``, where the kernel accounts swap
    :ivar memory_reservation: bytes that are taken away last when the host runs short
    :ivar pids: processes and threads
    :ivar cpu_quota: microseconds of CPU time in each period, on all processors together
    :ivar cpu_period: microseconds; default: 100000
    :ivar cpu_weight: 1 to 10000, against the default of 100, when processors are short
    :ivar cpuset_cpus: processors, as in ``0-1,3``
    :ivar cpuset_mems: memory nodes, likewise
    :ivar io_weight: 1 to 10000, against the default of 100, when a disk is busy
    :ivar io_max: for each block device ``DEVICE KEY=N…``: bytes (rbps, wbps) or operations (riops,
        wiops) in a second; DEVICE is a path or ``MAJOR:MINOR``
    :ivar oom_group: when memory runs out, kill all processes of the container, not just one
    """

    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    pids: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_weight: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    io_weight: int | None = None
    io_max: tuple[str, ...] = ()
    oom_group: bool | None = None

    def check(self) -> None:
        """Raise `UsageError` for what no host could enforce."""
        self._check_memory()
        _within("--pids", self.pids, 1, MAX_PIDS)
        if self.cpu_quota is not None:
            _check_quota(self.cpu_quota, "--cpu")
        if self.cpu_period is not None:
            _check_period(self.cpu_period, "--cpu")
            if self.cpu_quota is None:
                raise UsageError("a CPU period means nothing without a quota: --cpu 'QUOTA PERIOD'")
        _within("--cpu-weight", self.cpu_weight, *WEIGHTS, unlimited=False)
        _within("--io-weight", self.io_weight, *WEIGHTS, unlimited=False)
        for flag, text in (("cpus", self.cpuset_cpus), ("mems", self.cpuset_mems)):
            if text is not None:
                parse_set(text, f"--cpuset-{flag}")
        devices = [parse_io_max(entry)[0] for entry in self.io_max]
        for device in devices:
            if devices.count(device) > 1:
                raise UsageError(f"--io-max names {printable(device)} twice; write all keys in one")

    def _check_memory(self) -> None:
        for name in ("memory", "memory_swap", "memory_reservation"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            if value is not None and value != UNLIMITED and value < SMALLEST_MEMORY:
                hint = f"; for mebibytes write {value}m" if value > 0 else ""
                raise UsageError(
                    f"{flag} {value} is less than a page of memory ({SMALLEST_MEMORY} bytes){hint}"
                )
            _within(flag, value, SMALLEST_MEMORY, MAX_BYTES)
        memory = None if self.memory == UNLIMITED else self.memory
        if self.memory_swap is not None and self.memory_swap != UNLIMITED:
            if memory is None:
                raise UsageError(
                    "--memory-swap limits memory and swap together, so it needs --memory"
                )
            if self.memory_swap < memory:
                raise UsageError(
                    f"--memory-swap {format_bytes(self.memory_swap)} is memory and swap together: "
                    f"it cannot be less than --memory {format_bytes(memory)}"
                )
        if memory is not None and (self.memory_reservation or 0) > memory:
            raise UsageError(
                f"--memory-reservation {format_bytes(self.memory_reservation or 0)} is more than "
                f"--memory {format_bytes(memory)}"
            )

    def merged(self, changes: Limits) -> Limits:
        """These limits with what ``changes`` asks for in their place; devices one by one."""
        fields = {
            name: value
            for name in changes.__struct_fields__
            if (value := getattr(changes, name)) not in (None, ())
        }
        if changes.cpu_quota is not None:
            fields["cpu_period"] = changes.cpu_period
        devices = {parse_io_max(entry)[0]: parse_io_max(entry)[1] for entry in self.io_max}
        for device, keys in map(parse_io_max, changes.io_max):
            devices[device] = {**devices.get(device, {}), **keys}
        fields["io_max"] = tuple(format_io_max(*entry) for entry in devices.items())
        return msgspec.structs.replace(self, **fields)

    def as_text(self) -> dict[str, str]:
        """As metadata.json has them: what was asked for only, each as it could be typed."""
        return dict(_texts(self))

    def options(self) -> list[str]:
        """As options of the command line."""
        options = []
        for name, text in self.as_text().items():
            flag = f"--{name.replace('_', '-')}"
            if name == "io_max":
                options += [f"{flag}={entry}" for entry in self.io_max]
            elif name == "oom_group":
                options.append(flag if self.oom_group else f"--no-{flag[2:]}")
            else:
                options.append(f"{flag}={text}")
        return options


@lru_cache(maxsize=64)
def _texts(limits: Limits) -> dict[str, str]:
    """`Limits.as_text`, once for many containers with the same limits."""
    text = {}
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if value is None or value == () or name == "cpu_period":
            continue
        if name == "cpu_quota":
            text["cpu"] = f"{_count(value)} {limits.cpu_period or DEFAULT_PERIOD}"
        elif name == "io_max":
            text[name] = ", ".join(value)
        elif name == "oom_group":
            text[name] = "yes" if value else "no"
        elif name.startswith("memory"):
            text[name] = format_bytes(value)
        else:
            text[name] = value if isinstance(value, str) else _count(value)
    return text


def from_text(text: dict[str, str]) -> Limits:
    """The reverse of `Limits.as_text`.

    :raises UsageError: somebody edited it
    """
    fields: dict[str, object] = {}
    for name, value in text.items():
        if name == "cpu":
            fields["cpu_quota"], fields["cpu_period"] = parse_cpu(value)
        elif name == "io_max":
            fields[name] = tuple(format_io_max(*parse_io_max(e)) for e in value.split(", "))
        elif name == "oom_group":
            fields[name] = value == "yes"
        elif name in _PARSERS:
            fields[name] = _PARSERS[name](value)
        else:
            raise UsageError(f"unknown limit '{printable(name)}'")
    limits = msgspec.convert(fields, Limits)
    limits.check()
    return limits


# --- one value each -------------------------------------------------------------------------------


def parse_memory(text: str, flag: str) -> int:
    """``64m``, ``1.5g``, ``max``: bytes, or `UNLIMITED`."""
    value = parse_bytes(text, flag) if text != "max" else UNLIMITED
    if value == 0:
        raise UsageError(f"{flag} {text} would leave no memory at all; write max for no limit")
    return value


def parse_memory_swap(text: str) -> int:
    """As `parse_memory`; -1 means ``max``, as everywhere with this option."""
    return UNLIMITED if text == "-1" else parse_memory(text, "--memory-swap")


def parse_count(text: str, flag: str, high: int, *, unlimited: bool = True) -> int:
    """A whole number from 1 to ``high``; if ``unlimited``, also ``max`` or -1."""
    if unlimited and text in ("max", "-1"):
        return UNLIMITED
    if not _NUMBER.match(text) or not 1 <= int(text) <= high:
        other = ", or max" if unlimited else ""
        raise UsageError(
            f"{flag} '{printable(text[:40])}' is not a whole number from 1 to {high}{other}"
        )
    return int(text)


def parse_cpu(text: str) -> tuple[int, int]:
    """``"QUOTA PERIOD"`` or ``"QUOTA"`` in microseconds: (quota or `UNLIMITED`, period)."""
    words = text.split()
    if not 1 <= len(words) <= 2 or not all(_NUMBER.match(w) or w == "max" for w in words):
        raise UsageError(
            f"--cpu '{printable(text[:40])}' is not 'QUOTA PERIOD': microseconds of CPU time in "
            "each period, as in --cpu '50000 100000' for half a processor"
        )
    if words[-1] == "max" and len(words) == 2:
        raise UsageError("--cpu: only the quota can be max, not the period")
    period = int(words[1]) if len(words) == 2 else DEFAULT_PERIOD
    quota = UNLIMITED if words[0] == "max" else int(words[0])
    _check_period(period, "--cpu")
    _check_quota(quota, "--cpu")
    return quota, period


def parse_cpus(text: str) -> tuple[int, int]:
    """``0.5``: how many processors' time, as (quota, period)."""
    if text == "max":
        return UNLIMITED, DEFAULT_PERIOD
    match = _DECIMAL.match(text)
    if not match:
        raise UsageError(
            f"--cpus '{printable(text[:40])}' is not a number of processors, as 0.5 or 2"
        )
    digits = match[2] or ""
    quota = round(int(match[1] + digits) * DEFAULT_PERIOD / 10 ** len(digits))
    if quota < MIN_QUOTA:
        raise UsageError(
            f"--cpus {text} is too little: the kernel's smallest quota is {MIN_QUOTA} µs in "
            f"{DEFAULT_PERIOD}, which is --cpus 0.01"
        )
    _check_quota(quota, "--cpus")
    return quota, DEFAULT_PERIOD


def parse_set(text: str, flag: str) -> frozenset[int]:
    """``0-1,3``: the numbers of processors or memory nodes (cpuset(7), list format)."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (_NUMBER.match(first) and _NUMBER.match(last)) or int(first) > int(last):
            raise UsageError(
                f"{flag} '{printable(text[:40])}' is not a list of numbers and ascending ranges, "
                "as in 0-1,3"
            )
        if int(last) > MAX_CPU:
            raise UsageError(f"{flag} '{printable(text[:40])}': {last} is beyond {MAX_CPU}")
        numbers.update(range(int(first), int(last) + 1))
    return frozenset(numbers)


def format_set(numbers: frozenset[int]) -> str:
    """The reverse of `parse_set`, in the shortest form."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def parse_io_max(text: str) -> tuple[str, dict[str, int]]:
    """``/dev/vda rbps=1m wiops=100``: the device, and for each key a number or `UNLIMITED`."""
    words = text.split()
    if not words or not _DEVICE.match(words[0]) or len(words) < 2:
        raise UsageError(
            f"--io-max '{printable(text[:60])}' is not 'DEVICE KEY=N…', as in "
            "--io-max '/dev/vda rbps=10m wiops=100'"
        )
    keys: dict[str, int] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in IO_KEYS:
            raise UsageError(
                f"--io-max: '{printable(word[:40])}' is none of {', '.join(IO_KEYS)} with =N"
            )
        if key in keys:
            raise UsageError(f"--io-max sets {key} twice")
        if value == "max":
            keys[key] = UNLIMITED
        elif key.endswith("bps"):
            keys[key] = parse_bytes(value, f"--io-max {key}")
        else:
            keys[key] = parse_count(value, f"--io-max {key}", (1 << 32) - 2)
        if keys[key] == 0:
            raise UsageError(f"--io-max {key}=0 would stop the container for ever; 1 is the least")
    return words[0], keys


def format_io_max(device: str, keys: dict[str, int]) -> str:
    """The reverse of `parse_io_max`."""
    shown = {
        key: format_bytes(value) if key.endswith("bps") else _count(value)
        for key, value in keys.items()
    }
    return " ".join((device, *(f"{key}={value}" for key, value in shown.items())))


_PARSERS: dict[str, Callable[[str], object]] = {
    "memory": lambda text: parse_memory(text, "--memory"),
    "memory_swap": parse_memory_swap,
    "memory_reservation": lambda text: parse_memory(text, "--memory-reservation"),
    "pids": lambda text: parse_count(text, "--pids", MAX_PIDS),
    "cpu_weight": lambda text: parse_count(text, "--cpu-weight", WEIGHTS[1], unlimited=False),
    "cpuset_cpus": lambda text: format_set(parse_set(text, "--cpuset-cpus")),
    "cpuset_mems": lambda text: format_set(parse_set(text, "--cpuset-mems")),
    "io_weight": lambda text: parse_count(text, "--io-weight", WEIGHTS[1], unlimited=False),
}


def parse_limit(name: str, text: str) -> object:
    """The value of field ``name`` from what was typed; not for cpu, io_max and oom_group."""
    return _PARSERS[name](text)


def _count(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


def _within(flag: str, value: int | None, low: int, high: int, *, unlimited: bool = True) -> None:
    if value is None or (unlimited and value == UNLIMITED):
        return
    if not low <= value <= high:
        raise UsageError(f"{flag} {value} is not within {low} and {high}")


def _check_period(period: int, flag: str) -> None:
    low, high = PERIODS
    if not low <= period <= high:
        raise UsageError(f"{flag}: the period of {period} µs is not within {low} and {high}")


def _check_quota(quota: int, flag: str) -> None:
    if quota != UNLIMITED and quota < MIN_QUOTA:
        raise UsageError(
            f"{flag}: the quota of {quota} µs is less than the kernel's minimum of {MIN_QUOTA} µs; "
            "take a longer period or a larger quota"
        )
    if quota > MAX_QUOTA:
        raise UsageError(f"{flag}: the quota of {quota} µs is more than the kernel can count")
