"""What a user asks for (`Spec`), and what the host offers (`HostFacts`)."""

from __future__ import annotations

import msgspec

from craterun.core.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES
from craterun.core.errors import UsageError, printable
from craterun.core.hierarchy import Hierarchy
from craterun.core.limits import Limits
from craterun.core.logoptions import LogOptions
from craterun.core.restart import Condition, RestartPolicy
from craterun.core.units import argument_bytes, parse_env, parse_hostname, parse_name

__all__ = [
    "DEFAULT_PATH",
    "HOST_ROOTFS",
    "MAX_ARGUMENT_BYTES",
    "MAX_SECONDS",
    "Hierarchy",
    "HostFacts",
    "Identity",
    "RootDirectory",
    "Spec",
    "check_process",
    "check_window",
    "parse_cgroup_parent",
]

HOST_ROOTFS = "host"
"""The built-in rootfs: the host's /usr read-only, everything else fresh (`core.hostroot`)."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MAX_SECONDS = 1e9
"""Thirty years; more is a mistake."""

MAX_ARGUMENT_BYTES = 128 * 1024
"""Longest single argument or environment entry, ``MAX_ARG_STRLEN`` (execve(2))."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One container, as asked for. `check` tells whether it makes sense.

    :ivar command: the program and its arguments; a program without a slash is looked up in the
        container's ``PATH``
    :ivar rootfs: an absolute directory, or ``"host"`` for the built-in root
    :ivar name: a name besides the id, unique within a state directory
    :ivar hostname: default: the first 12 digits of the id
    :ivar env: added to the container's default environment
    :ivar workdir: an absolute directory inside
    :ivar user: ``NAME|UID[:GROUP|GID]``, looked up in the container's own /etc/passwd
    :ivar interactive: give the container an input pipe; without it stdin is /dev/null
    :ivar terminal: a terminal instead of pipes for the three standard streams; all output is one
        stream then, logged as stdout, and ``interactive`` is not needed to write to it
    :ivar merge_output: one pipe for standard output and error, so that their order is certain; all
        of it is logged as stdout
    :ivar window: (rows, columns) of the terminal at the start
    :ivar init: run a minimal init as PID 1, which reaps orphans and forwards signals
    :ivar auto_remove: remove all state when the container has ended
    :ivar capabilities: what root keeps inside, names without ``CAP_``
    :ivar limits: what it may use at most
    :ivar cgroup_parent: an existing cgroup to live below, as a path from a hierarchy's root, or
        from the delegated cgroup; default: ``craterun``
    :ivar timeout: seconds after which it is stopped, counted from its start; None: never
    :ivar stop_signal: what asks it to end, by the timeout and by ``craterun stop``
    :ivar stop_seconds: how long it has to end then, before SIGKILL
    :ivar oom_score_adj: -1000 to 1000, proc(5): whom the kernel prefers to kill
    :ivar restart: when it is started again after its end; not with ``interactive``
    :ivar log: how the output is kept
    """

    command: tuple[str, ...]
    rootfs: str = HOST_ROOTFS
    name: str | None = None
    hostname: str | None = None
    env: dict[str, str] = {}
    workdir: str = "/"
    user: str | None = None
    interactive: bool = False
    terminal: bool = False
    merge_output: bool = False
    window: tuple[int, int] = (24, 80)
    init: bool = False
    auto_remove: bool = False
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    limits: Limits = Limits()
    cgroup_parent: str | None = None
    oom_score_adj: int | None = None
    timeout: float | None = None
    stop_signal: int = 15
    stop_seconds: float = 10.0
    restart: RestartPolicy = RestartPolicy()
    log: LogOptions = LogOptions()

    def check(self) -> None:
        """Raise `UsageError` for what no host could run."""
        if self.name is not None:
            parse_name(self.name)
        if self.hostname is not None:
            parse_hostname(self.hostname)
        check_window(self.window)
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise UsageError(f"unknown capability '{printable(capability)}': write NET_ADMIN")
        self.limits.check()
        if self.cgroup_parent is not None:
            parse_cgroup_parent(self.cgroup_parent)
        if self.oom_score_adj is not None and not -1000 <= self.oom_score_adj <= 1000:
            raise UsageError(f"--oom-score-adj {self.oom_score_adj} is not within -1000 and 1000")
        check_times(self.timeout, self.stop_seconds)
        if self.interactive and self.restart.condition is not Condition.NO:
            raise UsageError(
                "--interactive and --restart exclude each other: what one life has read of the "
                "input, the next one cannot read again"
            )
        self.log.check()
        check_process(self.command, self.env, self.workdir)


def check_window(window: tuple[int, int]) -> None:
    """(rows, columns) as ``struct winsize`` can hold them."""
    if not all(0 <= size < 65536 for size in window):
        raise UsageError(f"a window of {window[0]} rows and {window[1]} columns is none")


def check_times(timeout: float | None, stop_seconds: float) -> None:
    """How long a command may run, and how long it has to end then."""
    if timeout is not None and not 0 < timeout < MAX_SECONDS:
        raise UsageError(f"--timeout {timeout:g} is no time to run for: give seconds, more than 0")
    if not 0 <= stop_seconds < MAX_SECONDS:
        raise UsageError(f"--stop-timeout {stop_seconds:g} is not a number of seconds")


def check_process(
    command: tuple[str, ...], env: dict[str, str], workdir: str, *, example: str = "run"
) -> None:
    """The rules that a container's command and an exec's command share.

    :param example: how a command line that has a command begins
    """
    if not command or not command[0]:
        raise UsageError(
            f"no command given: write it after --, as in: craterun {example} -- echo hello"
        )
    for key, value in env.items():
        if parse_env(f"{key}={value}") != (key, value):
            raise UsageError(f"environment name '{printable(key)}' contains an equals sign")
    for text in (*command, *(f"{k}={v}" for k, v in env.items())):
        size = len(argument_bytes(text))
        if size >= MAX_ARGUMENT_BYTES:
            raise UsageError(
                f"argument list too long: '{printable(text[:40])}'… has {size} bytes; "
                f"the kernel takes {MAX_ARGUMENT_BYTES - 1} in one"
            )
    argument_bytes(workdir)
    if not workdir.startswith("/"):
        raise UsageError(f"workdir '{printable(workdir)}' is not an absolute path")


def parse_cgroup_parent(text: str) -> str:
    """``a/b`` from ``/a/b``: a cgroup as a path below the root that is ours to use.

    :raises UsageError: it is empty, or leads out by ``..``
    """
    argument_bytes(text)
    parts = [part for part in text.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise UsageError(
            f"--cgroup-parent '{printable(text)}' must name a cgroup below the root of the "
            "hierarchy, without . and .."
        )
    return "/".join(parts)


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What this host can do, found out once (`linux.host.probe`); plans are a function of it.

    :ivar kernel: (major, minor) of the running kernel
    :ivar hierarchies: cgroup hierarchies that the caller can write to
    :ivar user_namespace: devices cannot be created here, only bound from the host
    :ivar blank: containers can begin in a blank mount namespace (`keeper.blank`): we may go there,
        and what the built-in root takes from the host can be copied. In a user namespace the kernel
        mounts /proc and /sys only where some are to be seen already (mount_namespaces(7)).
    :ivar last_capability: the highest capability number of the kernel
    :ivar usr_entries: name and link target of each top-level directory that holds programs and
        libraries, as it is on the host: ``("bin", "usr/bin")``, or ``("bin", "")`` for a directory
    :ivar etc_entries: what exists below /etc of `core.hostroot.ETC_NAMES`, directories with a
        trailing slash
    """

    kernel: tuple[int, int]
    hierarchies: tuple[Hierarchy, ...] = ()
    user_namespace: bool = False
    blank: bool = True
    last_capability: int = 40
    usr_entries: tuple[tuple[str, str], ...] = ()
    etc_entries: tuple[str, ...] = ()


class Identity(msgspec.Struct, frozen=True):
    """Numeric credentials of a process inside (credentials(7)), and its home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


class RootDirectory(msgspec.Struct, frozen=True):
    """A rootfs directory that passed every check, with what proves that it is still the same.

    :ivar bindable: open_tree(2) copies it with all that is mounted in it
    """

    path: str
    device: int
    inode: int
    bindable: bool = True
