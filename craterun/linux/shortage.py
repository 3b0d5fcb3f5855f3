"""What this host is short of: looked up when the kernel has refused something, to be told why.

Never on the way of anything that succeeds. Whoever asks may have no descriptor left to open a file
with, so that what has to be known of descriptors is found out without one.
"""

from __future__ import annotations

import errno as e
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from craterun.core import flags as f
from craterun.core.errors import KernelRefusedError, printable
from craterun.core.oom import parse_oom_kills
from craterun.core.units import short_bytes
from craterun.linux.fd import reserved_files
from craterun.linux.host import hierarchies
from craterun.linux.proc import parse_cgroup, parse_mountinfo

SHORTAGES = frozenset((e.EAGAIN, e.EMFILE, e.ENFILE, e.ENOBUFS, e.ENOMEM, e.ENOSPC, e.ETOOMANYREFS))
"""What the kernel says when it could do something, but has no room for it."""
NO_THREAD = "can't start new thread"
"""How CPython reports EAGAIN of pthread_create(3)."""
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
_ALMOST_BYTES = 1024 * 1024
"""Less than this and a cgroup is full: what a process takes before it runs is about as much."""
_NAMESPACES = {
    f.CLONE_NEWNET: "net", f.CLONE_NEWPID: "pid", f.CLONE_NEWNS: "mnt", f.CLONE_NEWUTS: "uts",
    f.CLONE_NEWIPC: "ipc", f.CLONE_NEWCGROUP: "cgroup", f.CLONE_NEWUSER: "user",
}  # fmt: skip


def cause(errno: int, *, pid: int = 0, namespaces: int = 0, mounting: bool = False) -> str:
    """The likely cause of a refusal and the remedy, or "" for an errno that tells of no shortage.

    :param pid: the process that was refused; 0: this one
    :param namespaces: CLONE_NEW* flags of the call
    :param mounting: the call was about a mount
    """
    if errno == e.EMFILE:
        return open_files(pid)
    if errno == e.ENFILE:
        return (
            f"all files that the host may have are open ({_sysctl('fs.file-max')}): end something, "
            "or raise it with: sysctl -w fs.file-max=…"
        )
    if errno == e.EAGAIN:
        return processes(pid)
    if errno == e.ENOSPC and namespaces:
        return namespace_limit(namespaces)
    if errno == e.ENOSPC and mounting:
        # A tree of mounts that is attached nowhere yet counts as a namespace, too.
        return (
            f"the limit on mount namespaces ({_sysctl('user.max_mnt_namespaces')}) or that on "
            f"mounts in one ({_sysctl('fs.mount-max')}) is reached; raise it with: sysctl -w "
            "user.max_mnt_namespaces=…, or fs.mount-max=…"
        )
    if errno == e.ENOMEM:
        return memory(pid)
    if errno in (e.ENOBUFS, e.ETOOMANYREFS):
        return "too many descriptors are on their way between processes; start fewer at once"
    return ""


def open_files(pid: int = 0) -> str:
    """How many descriptors a process has, of how many that it may have."""
    limit = _limit(pid, resource.RLIMIT_NOFILE)
    who = "the keeper" if pid and pid != os.getpid() else "this process"
    held = _count_files(pid)
    text = f"{who} may have {limit} descriptors"
    if held:
        text += f" and has {held}; the last ones are kept for containers that run"
    return f"{text}: raise the limit (ulimit -n, LimitNOFILE=) or run fewer in one supervisor"


def _limit(pid: int, kind: int) -> int:
    """A soft limit of a process, or of ours if it has ended; -1: none."""
    try:
        return resource.prlimit(pid, kind)[0]
    except OSError:
        return resource.getrlimit(kind)[0]


def _count_files(pid: int) -> int:
    """0: not known. The size of the directory is their number, from Linux 6.2 on (proc(5))."""
    directory = f"/proc/{pid or 'self'}/fd"
    try:
        return os.stat(directory).st_size or len(os.listdir(directory))
    except OSError:
        return 0


def processes(pid: int = 0) -> str:
    """Which limit keeps a process from forking."""
    for path, most in _full_pids_cgroups(pid):
        return f"the cgroup {printable(path)} has as many processes as its pids.max allows: {most}"
    user = _limit(pid, resource.RLIMIT_NPROC)
    if user >= 0 and not _is_exempt():
        return f"this user may have {user} processes and threads (ulimit -u), here and elsewhere"
    return (
        "a limit on processes is reached: "
        f"{_sysctl('kernel.threads-max')}, {_sysctl('kernel.pid_max')}, or a pids cgroup's"
    )


def _is_exempt() -> bool:
    """Whether RLIMIT_NPROC does not hold for us: not for root (getrlimit(2)), if that is the host's
    and not only that of our user namespace.
    """
    try:
        inside, outside, _ = map(int, _text("/proc/self/uid_map").splitlines()[0].split())
    except (OSError, ValueError, IndexError):
        return False
    return os.getuid() == 0 and inside == outside == 0


def _full_pids_cgroups(pid: int) -> Iterator[tuple[str, int]]:
    for _, here in _own_cgroups(pid, "pids"):
        try:
            most = _text(f"{here}/pids.max").strip()
            if most != "max" and int(_text(f"{here}/pids.current")) >= int(most):
                yield here, int(most)
        except (OSError, ValueError):
            continue  # the controller is not enabled there


def _own_cgroups(pid: int, controller: str) -> Iterator[tuple[int, str]]:
    """Version and directory of each cgroup that a process is in, up to but without the roots, in
    the hierarchies that may serve ``controller``.
    """
    try:
        found = hierarchies(parse_mountinfo(_text("/proc/self/mountinfo")))
        paths = parse_cgroup(_text(f"/proc/{pid or 'self'}/cgroup"))
    except OSError:
        return
    for hierarchy in found:
        # Which controllers version 2 has enabled where, the files there tell.
        if hierarchy.version == 2:
            path = paths.get("", "/")
        elif controller in hierarchy.controllers:
            path = paths.get(controller, "/")
        else:
            continue
        while path.strip("/"):
            yield hierarchy.version, f"{hierarchy.mountpoint}{path}"
            path = os.path.dirname(path)


def memory(pid: int = 0) -> str:
    """Who has no memory left for a process, and how much of it there is."""
    try:
        lines = (line.split() for line in _text("/proc/meminfo").splitlines())
        sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        if _sysctl_text("vm.overcommit_memory") == "2":
            return (
                "the host promises no more memory than it has (vm.overcommit_memory = 2), and "
                f"{short_bytes(sizes['Committed_AS'])} of {short_bytes(sizes['CommitLimit'])} are "
                "taken: end something, or raise it with: sysctl -w vm.overcommit_ratio=…"
            )
        for path, most in _full_memory_cgroups(pid):
            return (
                f"the cgroup {printable(path)} has used up its memory limit, {short_bytes(most)}: "
                "raise it, or end something in there"
            )
        return (
            f"the host has {short_bytes(sizes['MemAvailable'])} of its "
            f"{short_bytes(sizes['MemTotal'])} of memory left: end something, or add memory"
        )
    except (OSError, ValueError, LookupError):
        return "there is no memory left for it"


def _full_memory_cgroups(pid: int) -> Iterator[tuple[str, int]]:
    for version, here in _own_cgroups(pid, "memory"):
        names = _MEMORY_FILES[version]
        try:
            most, used = (_text(f"{here}/{name}").strip() for name in names)
            if most != "max" and int(used) > int(most) - _ALMOST_BYTES:
                yield here, int(most)
        except (OSError, ValueError):
            continue  # the controller is not enabled there


def namespace_limit(flags: int) -> str:
    """The smallest of the limits on the kinds of namespaces in ``flags`` (namespaces(7))."""
    values: dict[str, int] = {}
    for flag, kind in _NAMESPACES.items():
        name = f"user.max_{kind}_namespaces"
        if flags & flag and (text := _sysctl_text(name)).isdigit():
            values[name] = int(text)
    least = [name for name, value in values.items() if value == min(values.values())]
    if not least:
        return "the limit on namespaces is reached (/proc/sys/user/max_*_namespaces)"
    return (
        f"the limit on namespaces is reached, most likely {least[0]} = {values[least[0]]} "
        f"(all kinds: /proc/sys/user/max_*_namespaces); raise it with: sysctl -w {least[0]}=…"
    )


def killed(number: int) -> str:
    """What a signal that has ended another process of ours tells, which nobody here has sent."""
    if number != signal.SIGKILL:
        return f"signal {number}"
    for path, kills in _memory_cgroups_with_kills():
        times = "a process" if kills == 1 else f"{kills} processes"
        return (
            f"SIGKILL; in its cgroup {printable(path)} the kernel has killed {times} for want of "
            "memory: raise the limit there"
        )
    return "SIGKILL, from somebody, or from the kernel for want of memory (which dmesg would tell)"


def _memory_cgroups_with_kills() -> Iterator[tuple[str, int]]:
    """Of the cgroups that this process is in, from the innermost one on."""
    for version, here in _own_cgroups(0, "memory"):
        name = "memory.events" if version == 2 else "memory.oom_control"
        try:
            kills = parse_oom_kills(_text(f"{here}/{name}").encode())
        except (OSError, ValueError):
            continue
        if kills:
            yield here, kills


def inotify_limit(errno: int) -> str:
    """Why a program may watch no more directories (inotify(7))."""
    if errno == e.EMFILE:
        name = "fs.inotify.max_user_instances"
    elif errno == e.ENOSPC:
        name = "fs.inotify.max_user_watches"
    else:
        return ""
    return f"this user's programs watch as much as {_sysctl(name)} allows; raise it"


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Within the block, a shortage is raised as an error that names it and the remedy.

    :raises KernelRefusedError: instead of an `OSError` that tells of a shortage, and of CPython's
        `RuntimeError` when it cannot start a thread
    """
    try:
        yield
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        what = printable(str(error.filename or ""))
        raise KernelRefusedError(doing, what, "", error.errno, cause(error.errno)) from error
    except RuntimeError as error:
        if not is_no_thread(error):
            raise
        raise KernelRefusedError(doing, "start a thread", "", e.EAGAIN, processes()) from error


def is_no_thread(error: RuntimeError) -> bool:
    """Whether it says that no thread could be started."""
    return NO_THREAD in str(error)


def require_room(number: int, others: int) -> None:
    """Check that there is room for what one more container takes, beside a reserve.

    The kernel gives out the lowest free number, so a high one means that few are left.

    :param number: a descriptor that was just opened
    :param others: descriptors that others are about to open
    :raises OSError: EMFILE
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number + others >= limit - reserved_files(limit):
        raise OSError(e.EMFILE, os.strerror(e.EMFILE))


def _sysctl_text(name: str) -> str:
    try:
        return _text("/proc/sys/" + name.replace(".", "/")).strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    value = _sysctl_text(name)
    return f"{name} = {value}" if value else name


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()
