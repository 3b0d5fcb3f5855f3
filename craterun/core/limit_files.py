"""Limits as contents of the kernel's files, for both versions of cgroups, and what they read back.

Version 2 is described in Documentation/admin-guide/cgroup-v2.rst, version 1 in the directory
cgroup-v1 beside it. A function for each controller tells what to write for which limits; nothing
here knows where the files are, or whether they exist.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from craterun.core.errors import LimitError
from craterun.core.limits import (
    DEFAULT_PERIOD,
    IO_KEYS,
    UNLIMITED,
    Limits,
    parse_io_max,
    parse_set,
)
from craterun.core.units import MAX_BYTES

Kind = Literal["bytes", "exact", "set", "weight", "device"]
Version = Literal[1, 2]

_LEAST_UNLIMITED = 1 << 62
"""Version 1 shows "no limit" as a number: the largest multiple of the page size, near 2 ** 63."""


class Content(msgspec.Struct, frozen=True):
    """What one file of a controller shall say.

    :ivar flag: the option that asked for it, with its value, for messages
    :ivar file: name of the file
    :ivar value: what is written
    :ivar kind: how the file is compared with ``value`` afterwards: ``bytes``, rounded to pages;
        ``exact``; ``set``, a list of processors; ``weight``, perhaps after ``default``; ``device``,
        one line among others
    :ivar optional: nobody asked for just this: where there is no such file, there need be none
    :ivar absent: why the file may be absent, and the remedy
    :ivar initial: what it says in a new cgroup
    """

    flag: str
    file: str
    value: str
    kind: Kind
    optional: bool = False
    absent: str = ""
    initial: bool = False


def contents(controller: str, version: Version, limits: Limits) -> tuple[Content, ...]:
    """What ``controller`` (as version 2 calls it) has to be told for ``limits``, in this order.

    :raises LimitError: this version cannot do it
    """
    if controller == "memory":
        return tuple(_memory_2(limits) if version == 2 else _memory_1(limits))
    if controller == "pids":
        return _pids(limits)
    if controller == "cpu":
        return tuple(_cpu_2(limits) if version == 2 else _cpu_1(limits))
    if controller == "cpuset":
        return tuple(_cpuset(limits))
    return tuple(_io_2(limits) if version == 2 else _io_1(limits))


def limited(limits: Limits) -> dict[str, str]:
    """The controllers that ``limits`` needs, each with the first option that needs it."""
    asked = {
        "memory": ("memory", "memory_swap", "memory_reservation", "oom_group"),
        "pids": ("pids",),
        "cpu": ("cpu_quota", "cpu_weight"),
        "cpuset": ("cpuset_cpus", "cpuset_mems"),
        "io": ("io_weight", "io_max"),
    }
    needed: dict[str, str] = {}
    for controller, names in asked.items():
        for name in names:
            if getattr(limits, name) not in (None, ()):
                needed.setdefault(controller, _flag(name))
    return needed


def _flag(name: str) -> str:
    return "--cpu" if name == "cpu_quota" else f"--{name.replace('_', '-')}"


def _asked(limits: Limits, name: str) -> str:
    key = "cpu" if name == "cpu_quota" else name
    return f"{_flag(name)} {limits.as_text().get(key, '')}".strip()


# --- memory ---------------------------------------------------------------------------------------

_NO_SWAP_1 = (
    "this kernel does not account swap; boot it with swapaccount=1, or leave --memory-swap out"
)
_NO_SWAP_2 = (
    "this kernel does not account swap; boot it without cgroup.memory=noswap and swapaccount=0, "
    "or leave --memory-swap out"
)


def memory_and_swap(limits: Limits) -> int | None:
    """The limit on both together: as asked for, or twice the memory; None if there is none."""
    if limits.memory_swap is not None:
        return limits.memory_swap
    if limits.memory is None:
        return None
    if limits.memory == UNLIMITED or limits.memory * 2 > MAX_BYTES:
        return UNLIMITED
    return limits.memory * 2


def _memory_2(limits: Limits) -> list[Content]:
    found = []
    if limits.memory is not None:
        value = _bytes(limits.memory, "max")
        found.append(Content(_asked(limits, "memory"), "memory.max", value, "bytes"))
    both = memory_and_swap(limits)
    if both is not None:
        # Here swap is counted apart.
        swap = both if both == UNLIMITED or limits.memory is None else both - limits.memory
        found.append(_swap(limits, both, "memory.swap.max", _bytes(swap, "max"), _NO_SWAP_2))
    if limits.memory_reservation is not None:
        value = _bytes(limits.memory_reservation, "max")
        flag = _asked(limits, "memory_reservation")
        found.append(Content(flag, "memory.low", value, "bytes"))
    if limits.oom_group is not None:
        absent = "it needs Linux 4.19"
        value = str(int(limits.oom_group))
        found.append(Content("--oom-group", "memory.oom.group", value, "exact", absent=absent))
    return found


def _memory_1(limits: Limits) -> list[Content]:
    if limits.oom_group:
        raise LimitError(
            "--oom-group cannot be had here: the memory controller is on cgroup version 1, which "
            "kills one process at a time; boot with systemd.unified_cgroup_hierarchy=1"
        )
    found = []
    if limits.memory is not None:
        flag = _asked(limits, "memory")
        value = _bytes(limits.memory, "-1")
        found.append(Content(flag, "memory.limit_in_bytes", value, "bytes"))
    both = memory_and_swap(limits)
    if both is not None:
        value = _bytes(both, "-1")
        found.append(_swap(limits, both, "memory.memsw.limit_in_bytes", value, _NO_SWAP_1))
    if limits.memory_reservation is not None:
        flag = _asked(limits, "memory_reservation")
        value = _bytes(limits.memory_reservation, "-1")
        absent = "this kernel has no soft limits (PREEMPT_RT)"
        found.append(Content(flag, "memory.soft_limit_in_bytes", value, "bytes", absent=absent))
    return found


def _swap(limits: Limits, both: int, file: str, value: str, absent: str) -> Content:
    """:param both: what `memory_and_swap` says"""
    implied = limits.memory_swap is None
    flag = _asked(limits, "memory" if implied else "memory_swap")
    optional = implied or both == UNLIMITED
    return Content(flag, file, value, "bytes", optional=optional, absent=absent)


def _bytes(value: int, unlimited: str) -> str:
    return unlimited if value == UNLIMITED else str(value)


# --- pids, cpu, cpuset ----------------------------------------------------------------------------


def _pids(limits: Limits) -> tuple[Content, ...]:
    if limits.pids is None:
        return ()
    return (Content(_asked(limits, "pids"), "pids.max", _bytes(limits.pids, "max"), "exact"),)


_NO_BANDWIDTH = "this kernel was built without CONFIG_CFS_BANDWIDTH"


def _cpu_2(limits: Limits) -> list[Content]:
    found = []
    if limits.cpu_quota is not None:
        value = f"{_bytes(limits.cpu_quota, 'max')} {limits.cpu_period or DEFAULT_PERIOD}"
        flag = _asked(limits, "cpu_quota")
        found.append(Content(flag, "cpu.max", value, "exact", absent=_NO_BANDWIDTH))
    if limits.cpu_weight is not None:
        flag = _asked(limits, "cpu_weight")
        found.append(Content(flag, "cpu.weight", str(limits.cpu_weight), "exact"))
    return found


def _cpu_1(limits: Limits) -> list[Content]:
    found = []
    if limits.cpu_quota is not None:
        flag = _asked(limits, "cpu_quota")
        period = str(limits.cpu_period or DEFAULT_PERIOD)
        quota = str(limits.cpu_quota)
        usual = limits.cpu_period in (None, DEFAULT_PERIOD)
        found = [
            Content(
                flag, "cpu.cfs_period_us", period, "exact", absent=_NO_BANDWIDTH, initial=usual
            ),
            Content(flag, "cpu.cfs_quota_us", quota, "exact", absent=_NO_BANDWIDTH),
        ]
    if limits.cpu_weight is not None:
        flag = _asked(limits, "cpu_weight")
        shares = str(shares_of_weight(limits.cpu_weight))
        found.append(Content(flag, "cpu.shares", shares, "exact"))
    return found


def shares_of_weight(weight: int) -> int:
    """cpu.shares that the scheduler treats exactly as cpu.weight ``weight``.

    The kernel keeps one number for both, weight * 1024 / 100 (``sched_weight_from_cgroup``), so the
    defaults of 100 and 1024 correspond. runc's older linear map, the reverse of which would make
    2597 of 100, does not have that property.
    """
    return max(2, (weight * 1024 + 50) // 100)


def _cpuset(limits: Limits) -> list[Content]:
    found = []
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(limits, name)
        if value is not None:
            file = name.replace("_", ".")
            found.append(Content(_asked(limits, name), file, value, "set"))
    return found


# --- io -------------------------------------------------------------------------------------------

_NO_THROTTLE = "this kernel was built without CONFIG_BLK_DEV_THROTTLING"


def bfq_weight(weight: int) -> int:
    """BFQ's weight, 1 to 1000, for 1 to 10000; both have the default 100."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def _io_2(limits: Limits) -> list[Content]:
    found = []
    if limits.io_weight is not None:
        flag = _asked(limits, "io_weight")
        bfq, any_disk = str(bfq_weight(limits.io_weight)), f"default {limits.io_weight}"
        # One for each of the two mechanisms; whether one is at work, `linux.limits` looks up.
        found = [
            Content(flag, "io.bfq.weight", bfq, "weight", optional=True),
            Content(flag, "io.weight", any_disk, "weight", optional=True),
        ]
    for device, keys in map(parse_io_max, limits.io_max):
        words = (f"{key}={_bytes(value, 'max')}" for key, value in keys.items())
        value = " ".join((device, *words))
        flag = f"--io-max {device}"
        found.append(Content(flag, "io.max", value, "device", absent=_NO_THROTTLE))
    return found


_THROTTLE = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
assert tuple(_THROTTLE) == IO_KEYS


def _io_1(limits: Limits) -> list[Content]:
    found = []
    if limits.io_weight is not None:
        flag = _asked(limits, "io_weight")
        weight = str(bfq_weight(limits.io_weight))
        found.append(Content(flag, "blkio.bfq.weight", weight, "weight", optional=True))
    for device, keys in map(parse_io_max, limits.io_max):
        for key, number in keys.items():
            value = f"{device} {0 if number == UNLIMITED else number}"  # 0 removes the limit
            flag = f"--io-max {device} {key}"
            found.append(Content(flag, _THROTTLE[key], value, "device", absent=_NO_THROTTLE))
    return found


# --- what a file says afterwards ------------------------------------------------------------------


def agrees(kind: Kind, wanted: str, found: str, page: int) -> bool:
    """Whether a file that ``wanted`` was written to and that now reads ``found`` means the same.

    :param page: bytes of a page: memory is counted in whole ones, rounded down
    """
    if kind == "bytes":
        unlimited = found == "max" or (found.isdigit() and int(found) >= _LEAST_UNLIMITED)
        if wanted in ("max", "-1"):
            return unlimited
        return found.isdigit() and (
            int(found) == int(wanted) // page * page
            or (unlimited and int(wanted) >= _LEAST_UNLIMITED)
        )
    if kind == "set":
        return (parse_set(found, "") if found else frozenset()) == (
            parse_set(wanted, "") if wanted else frozenset()
        )
    if kind == "weight":
        return (found.split("\n", 1)[0].split() or [""])[-1] == wanted.rsplit(maxsplit=1)[-1]
    if kind == "device":
        return _device_words(wanted) <= (_device_words(found) | _unlimited_words(wanted, found))
    return found.split() == wanted.split()


def _device_words(text: str) -> set[tuple[str, str]]:
    return {
        (line.split()[0], word) for line in text.split("\n") if line for word in line.split()[1:]
    }


def _unlimited_words(wanted: str, found: str) -> set[tuple[str, str]]:
    """What may be absent: a device or key without a limit is not listed."""
    device, *words = wanted.split()
    listed = {word.partition("=")[0] for line, word in _device_words(found) if line == device}
    return {
        (device, word)
        for word in words
        if (word == "0" and not listed)
        or (word.endswith("=max") and word.partition("=")[0] not in listed)
    }


def restoring(content: Content, before: str) -> str:
    """What to write to have a file say again what it said ``before`` ``content`` was written."""
    if content.kind == "weight":
        return before.split("\n", 1)[0]
    if content.kind != "device":
        return before.strip() or "\n"
    device, *words = content.value.split()
    old = {word.partition("=")[0]: word for d, word in _device_words(before) if d == device}
    if "=" not in words[0]:  # version 1: one number
        return f"{device} {next(iter(old), '0')}"
    keys = (word.partition("=")[0] for word in words)
    return " ".join((device, *(old.get(key, f"{key}=max") for key in keys)))


def in_safe_order(changes: list[Content], before: dict[str, str]) -> list[Content]:
    """``changes`` in an order in which no state in between is refused or looser than both ends.

    Version 1 wants memory never above memory and swap together, and judges quota and period one
    after the other.

    :param before: what the files say now
    """
    order = list(changes)
    names = [content.file for content in order]
    if "memory.limit_in_bytes" in names and "memory.memsw.limit_in_bytes" in names:
        first, second = (names.index(f"memory.{n}limit_in_bytes") for n in ("", "memsw."))
        together = before.get("memory.memsw.limit_in_bytes", "")
        wanted = order[first].value
        if together.isdigit() and (wanted == "-1" or int(wanted) > int(together)):
            order[first], order[second] = order[second], order[first]
    if "cpu.cfs_period_us" in names and "cpu.cfs_quota_us" in names:
        first, second = names.index("cpu.cfs_period_us"), names.index("cpu.cfs_quota_us")
        if int(order[first].value) < int(before.get("cpu.cfs_period_us") or 0):
            order[first], order[second] = order[second], order[first]
    return order
