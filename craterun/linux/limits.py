"""Limits on the real kernel: write, read back, put back (cgroups(7)).

Every file is read after it was written. The kernel rounds some values, which is fine, and clamps or
ignores others, which is not: then, or when it refuses, everything written before is put back.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from craterun.core.cgroups import PARENT, Write
from craterun.core.errors import LimitError, UsageError, printable
from craterun.core.limit_files import Content, agrees, in_safe_order, restoring
from craterun.core.limits import Limits, format_io_max, format_set, parse_io_max, parse_set
from craterun.linux.cgroup import READ_BYTES, read, write_text


def resolve_devices(limits: Limits) -> Limits:
    """``limits`` with every block device of ``io_max`` as MAJOR:MINOR.

    :raises UsageError: there is no such device, or it is a partition, which cannot be limited
    """
    if not limits.io_max:
        return limits
    entries = (parse_io_max(entry) for entry in limits.io_max)
    return msgspec.structs.replace(
        limits, io_max=tuple(format_io_max(_numbers(device), keys) for device, keys in entries)
    )


def _numbers(device: str) -> str:
    if not device.startswith("/"):
        numbers = device
    else:
        try:
            found = os.stat(device)
        except OSError as error:
            raise UsageError(
                f"--io-max {printable(device)}: {os.strerror(error.errno or 0)}; "
                "name a disk as lsblk does"
            ) from error
        if not stat.S_ISBLK(found.st_mode):
            raise UsageError(f"--io-max {printable(device)} is not a block device")
        numbers = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    place = f"/sys/dev/block/{numbers}"
    if not os.path.exists(place):
        raise UsageError(f"--io-max {printable(device)}: there is no block device {numbers}")
    if os.path.exists(f"{place}/partition"):
        whole = os.path.basename(os.path.dirname(os.path.realpath(place)))
        raise UsageError(
            f"--io-max {printable(device)} is a partition; the kernel limits whole disks: "
            f"/dev/{whole}"
        )
    return numbers


# --- writing --------------------------------------------------------------------------------------


def apply(writes: Sequence[Write]) -> None:
    """Write all in new cgroups, which nobody is in yet, and read each back.

    :raises LimitError: the kernel refused one, or keeps another value; remove the cgroups
    """
    for write in writes:
        if write.content.initial:
            continue  # the kernel's own default; what goes with it is written and read back
        _check(write)
        _put(write)
    _require_one_weight(writes)


def change(writes: Sequence[Write]) -> Callable[[], None]:
    """Write all in the cgroups of a running container, or none. Returns what undoes it.

    :raises LimitError: one was refused; what was written before has been put back
    :raises FileNotFoundError: the container has just ended
    """
    before: dict[str, str] = {}
    for write in writes:
        _require(write.directory)
        _check(write)
        with suppress(FileNotFoundError):
            before[write.path] = read(write.path)
    done: list[Write] = []
    try:
        for write in _ordered(writes, before):
            if write.content.file == "memory.max":
                _shrink_first(write)
            if write.path in before:
                done.append(write)
            _put(write)
        _require_one_weight(writes)
    except BaseException:
        _put_back(done, before)
        raise
    return lambda: _put_back(done, before)


def _ordered(writes: Sequence[Write], before: dict[str, str]) -> list[Write]:
    found: list[Write] = []
    for directory in dict.fromkeys(write.directory for write in writes):
        contents = [write.content for write in writes if write.directory == directory]
        values = {
            os.path.basename(path): value
            for path, value in before.items()
            if os.path.dirname(path) == directory
        }
        found += (Write(directory, content) for content in in_safe_order(contents, values))
    return found


def _put_back(done: list[Write], before: dict[str, str]) -> None:
    # In reverse, each step undoes one whose surroundings are as they were when it was allowed.
    for write in reversed(done):
        with suppress(OSError):
            write_text(write.path, restoring(write.content, before[write.path]))


def _put(write: Write) -> None:
    content = write.content
    try:
        fd = os.open(write.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if content.optional:
            return
        raise _refusal(write, content.absent or "this kernel has no such file") from None
    except OSError as error:
        _require(write.directory)
        raise _refusal(write, _reason(error, content)) from error
    try:
        os.write(fd, content.value.encode() or b"\n")
        found = os.pread(fd, READ_BYTES, 0).decode().strip()
    except OSError as error:
        _require(write.directory)
        raise _refusal(write, _reason(error, content)) from error
    finally:
        os.close(fd)
    if found != content.value and not agrees(content.kind, content.value, found, mmap.PAGESIZE):
        shown = printable(found.replace("\n", "; "))
        raise _refusal(write, f"wrote {content.value!r}, but the kernel keeps {shown!r}")


def _require(directory: str) -> None:
    """A cgroup that was removed meanwhile is no reason to blame the limit."""
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)


def _refusal(write: Write, why: str) -> LimitError:
    return LimitError(f"{write.content.flag} cannot be enforced: {printable(write.path)}: {why}")


def _reason(error: OSError, content: Content) -> str:
    why = os.strerror(error.errno or 0)
    memory = content.file.startswith("memory")
    if error.errno == errno.EBUSY and memory:
        return f"{why}; the container uses more than that and cannot be made to use less"
    if error.errno == errno.EINVAL and content.file.startswith("cpu."):
        return f"{why}; a cgroup above may be limited to less"
    if error.errno in (errno.EINVAL, errno.ENODEV) and content.kind == "device":
        return f"{why}; this device cannot be limited"
    if error.errno == errno.EOPNOTSUPP:
        return f"{why}; {content.absent}" if content.absent else why
    return why


def _shrink_first(write: Write) -> None:
    """Refuse a memory.max that the kernel could only enforce by killing.

    Writing memory.high below what is used takes pages away at once, and kills nobody.
    """
    if write.content.value == "max":
        return
    wanted = int(write.content.value)
    usage, high = (f"{write.directory}/memory.{name}" for name in ("current", "high"))
    if int(read(usage)) <= wanted:
        return
    before = read(high)
    try:
        write_text(high, str(wanted))
        if int(read(usage)) > wanted:
            raise _refusal(write, _reason(OSError(errno.EBUSY, ""), write.content))
    finally:
        write_text(high, before)


# --- what the kernel would accept and not do ------------------------------------------------------


def _check(write: Write) -> None:
    if write.content.kind == "set":
        _check_set(write)
    elif write.content.file == "memory.low":
        _protect(write)


def _check_set(write: Write) -> None:
    """A processor that is not there: version 2 would take it and go on with those that are."""
    kind = write.content.file.partition(".")[2]  # cpus or mems
    above = os.path.dirname(write.directory)
    for name in (f"cpuset.{kind}.effective", f"cpuset.effective_{kind}", f"cpuset.{kind}"):
        with suppress(FileNotFoundError):
            text = read(f"{above}/{name}")
            break
    else:
        return  # writing will tell why
    there = parse_set(text, name) if text else frozenset()
    excess = parse_set(write.content.value, write.content.flag) - there
    if excess:
        what = "processor" if kind == "cpus" else "memory node"
        raise LimitError(
            f"{write.content.flag} cannot be enforced: {what} {format_set(excess)} is not among "
            f"{text or 'none'}, which {printable(above)} offers"
        )


def _protect(write: Write) -> None:
    """See to it that memory.low is worth something: no cgroup is protected more than those above.

    Our own common parent gets the sum of what its containers were promised. Anybody else's cgroup
    above is left alone, and a promise that it does not cover is refused.
    """
    above = os.path.dirname(write.directory)
    if os.path.basename(above) == PARENT:
        _raise_parent(above, write)
        above = os.path.dirname(above)
    wanted = write.content.value
    while os.path.exists(f"{above}/memory.low"):  # the root has none
        low = read(f"{above}/memory.low")
        if low != "max" and (
            wanted == "max" or int(low) < int(wanted) // mmap.PAGESIZE * mmap.PAGESIZE
        ):
            raise LimitError(
                f"{write.content.flag} cannot be enforced: {printable(above)}/memory.low is {low}, "
                "and nothing below is protected more; raise that one first (systemd: MemoryLow=)"
            )
        above = os.path.dirname(above)


def _raise_parent(parent: str, write: Write) -> None:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two starts must not each miss the other's share
        promised = [write.content.value]
        with os.scandir(parent) as entries:
            others = [e.path for e in entries if e.is_dir() and e.path != write.directory]
        for path in others:
            with suppress(OSError):
                promised.append(read(f"{path}/memory.low"))
        total = "max" if "max" in promised else str(sum(map(int, promised)))
        with suppress(FileNotFoundError):  # no memory controller: said when the limit is written
            write_text(f"{parent}/memory.low", total)
    finally:
        os.close(fd)


def _require_one_weight(writes: Iterable[Write]) -> None:
    """A weight is a file for each mechanism, and both may be asleep: then it would do nothing."""
    weights = [write for write in writes if write.content.kind == "weight"]
    if not weights:
        return
    files = {write.content.file for write in weights if os.path.exists(write.path)}
    bfq = bool(files & {"io.bfq.weight", "blkio.bfq.weight"}) and bfq_is_used()
    cost = "io.weight" in files and cost_is_used(weights[0].directory)
    if not bfq and not cost:
        raise LimitError(
            f"{weights[0].content.flag} cannot be enforced: no disk here divides its time by "
            "weight; choose the BFQ scheduler first: echo bfq >/sys/block/DISK/queue/scheduler"
        )


def bfq_is_used() -> bool:
    """Whether any disk has the BFQ scheduler, which divides a disk's time by weight."""
    with os.scandir("/sys/block") as disks:
        for disk in disks:
            with suppress(OSError):
                if "[bfq]" in read(f"{disk.path}/queue/scheduler"):
                    return True
    return False


def cost_is_used(directory: str) -> bool:
    """Whether io.cost, the other mechanism, is switched on at the root of version 2."""
    while not os.path.exists(f"{directory}/io.cost.qos"):
        if len(directory) <= 1:
            return False
        directory = os.path.dirname(directory)
    return "enable=1" in read(f"{directory}/io.cost.qos").split()
