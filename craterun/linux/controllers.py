"""What must be true above a container's cgroup: controllers enabled, cpusets filled, parents there.

Version 2 has the rule of no internal processes: a cgroup that hands controllers down has no
process of its own. The root is exempt, but a delegated cgroup is not, and systemd starts us in it.
So there, if nobody else is in it, we move into a leaf, as systemd's documentation on delegation
asks for. Other people's processes are never moved.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import msgspec

from craterun.core.cgroups import CgroupPlan
from craterun.core.errors import LimitError, UsageError, printable
from craterun.core.spec import HostFacts, parse_cgroup_parent
from craterun.linux.cgroup import read, write_text
from craterun.linux.host import LEAF
from craterun.linux.proc import parse_parent


def below(parent: str, host: HostFacts) -> HostFacts:
    """``host`` with containers put below ``parent`` in each hierarchy that has such a cgroup.

    It is not made where it is missing, since nobody could tell later whether it is still needed:
    there, containers go where they always do.

    :raises UsageError: no hierarchy has it
    """
    path = parse_cgroup_parent(parent)
    found = [h for h in host.hierarchies if os.path.isdir(f"{h.top}/{path}")]
    if not found:
        places = ", ".join(f"{h.top}/{path}" for h in host.hierarchies) or "no hierarchy"
        raise UsageError(
            f"--cgroup-parent {printable(parent)} does not exist: none of {printable(places)}; "
            "make it with mkdir"
        )
    for hierarchy in found:
        place = f"{hierarchy.top}/{path}"
        if not _is_inside(place, hierarchy.top):
            raise UsageError(f"--cgroup-parent {printable(parent)}: {printable(place)} leads out")
    return msgspec.structs.replace(
        host,
        hierarchies=tuple(h._replace(parent=path) if h in found else h for h in host.hierarchies),
    )


def _is_inside(path: str, top: str) -> bool:
    real, real_top = os.path.realpath(path), os.path.realpath(top)
    return real.startswith(f"{real_top}/") and os.stat(real).st_dev == os.stat(real_top).st_dev


# --- version 2: controllers -----------------------------------------------------------------------


def enable(directory: str, top: str, needed: dict[str, str], welcome: tuple[str, ...]) -> None:
    """Have controllers in the version 2 cgroup ``directory``, by enabling them from ``top`` down.

    :param needed: those without which a limit would not hold, each with the option to name
    :param welcome: those that may be refused
    :raises LimitError: one that is needed cannot be had
    """
    names = dict.fromkeys((*needed, *welcome))
    if not names:
        return
    present = read(f"{directory}/cgroup.controllers").split()
    if all(name in present for name in names):
        return  # the usual case: the first container has seen to it
    levels = [top]
    for part in os.path.dirname(directory)[len(top) + 1 :].split("/"):
        levels.append(f"{levels[-1]}/{part}")
    for name in names:
        if name in present:
            continue
        for level in levels:
            try:
                _enable(name, level, make_room=level == top and name in needed)
            except OSError as error:
                if name not in needed:
                    break
                raise LimitError(
                    f"{needed[name]} cannot be enforced: enable {name} in {printable(level)}: "
                    f"{os.strerror(error.errno or 0)}; {_why(error, level)}"
                ) from error


def _enable(name: str, level: str, *, make_room: bool) -> None:
    path = f"{level}/cgroup.subtree_control"
    if name in read(path).split():
        return
    # The kernel refuses memory and io where processes are, but takes pids and cpu, and makes it a
    # threaded cgroup, below which no process can be. The root, which has no type, is exempt.
    occupied = os.path.exists(f"{level}/cgroup.type") and _pids(level)
    if occupied and not (make_room and _move_into_leaf(level)):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    write_text(path, f"+{name}")


def _why(error: OSError, level: str) -> str:
    if error.errno == errno.EBUSY:
        others = ", ".join(map(str, _pids(level)[:4])) or "none any more"
        return (
            f"a cgroup with processes in it cannot limit those below (here: {others}); run "
            "craterun alone in one: systemd-run --scope -p Delegate=yes craterun run …"
        )
    if error.errno == errno.ENOENT:
        return "the cgroup above does not hand this controller down"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this cgroup belongs to somebody else; have it delegated (systemd: Delegate=yes)"
    return "craterun info tells more"


def _move_into_leaf(level: str) -> bool:
    """Move this process and its next of kin out of ``level``, if nobody else is there."""
    pids = _pids(level)
    if not all(_is_ours(pid) for pid in pids):
        return False
    leaf = f"{level}/{LEAF}"
    with suppress(FileExistsError):
        os.mkdir(leaf)
    for pid in pids:
        with suppress(ProcessLookupError):
            write_text(f"{leaf}/cgroup.procs", str(pid))
    return True


def _is_ours(pid: int) -> bool:
    """Whether it is this process, a child (the keeper), or the parent that forked it to detach."""
    if pid == os.getpid():
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if parse_parent(file.read()) == os.getpid():
                return True
        with open(f"/proc/{pid}/cmdline") as theirs, open("/proc/self/cmdline") as ours:
            return pid == os.getppid() and theirs.read() == ours.read()
    except OSError:
        return True  # it has ended


def _pids(path: str) -> list[int]:
    return [int(line) for line in read(f"{path}/cgroup.procs").split()]


# --- version 1: cpuset ----------------------------------------------------------------------------


def fill_cpusets(plan: CgroupPlan) -> None:
    """Give new version 1 cpusets what their parents have: nobody can enter an empty one.

    :raises OSError: the kernel refused
    """
    for path in plan.cpusets:
        for file in ("cpuset.cpus", "cpuset.mems"):
            _fill(path, file)


def _fill(path: str, file: str) -> str:
    value = read(f"{path}/{file}")
    if not value:
        value = _fill(os.path.dirname(path), file)
        write_text(f"{path}/{file}", value)
    return value
