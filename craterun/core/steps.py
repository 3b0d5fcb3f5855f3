"""The steps that a launch plan (`core.launchplan`) is made of: frozen data, no behaviour. Those
about mounts and files are in `core.mount_steps`.

`core.program` knows which system calls a step consists of, and `keeper.child` makes them. Each step
also says, for the case that the kernel refuses, what it was doing: the child reports only the
number of a call and an errno, and the parent, which has the same plan, makes the sentence
(`core.failures`).

Paths are bytes: file names are bytes to the kernel. A *slot* names a descriptor that one step opens
and a later one uses (`core.opcodes.SLOT_*`).
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from craterun.core.errors import printable

Values = tuple[bytes | tuple[bytes, ...], ...]
"""What steps have of their own; a tuple is a list of strings."""


class Step(msgspec.Struct, frozen=True):
    """Base of all steps."""

    def doing(self) -> str:
        """What this step is for, as a verb phrase."""
        raise NotImplementedError

    def target(self) -> str:
        """What it works on, or ""."""
        return ""

    def own(self) -> Values:
        """What is particular to one container; a tuple for a list of strings."""
        return ()

    def shape(self) -> Hashable:
        """Everything else: steps of one shape are the same calls but for what is their `own`."""
        return self


class SetSession(Step, frozen=True):
    """A new session: no controlling terminal is inherited (setsid(2))."""

    def doing(self) -> str:
        return "start a session"


class OpenCgroup(Step, frozen=True):
    """Open ``path``, the ``tasks`` file of a version 1 cgroup, to enter it later.

    Entering comes last, so that a container's limits do not count what setting it up takes; by then
    the host's files cannot be reached any more.

    :ivar number: tells several of them apart
    """

    number: int
    path: bytes

    def doing(self) -> str:
        return "open the container's cgroup"

    def target(self) -> str:
        return printable(self.path)

    def own(self) -> Values:
        return (self.path,)

    def shape(self) -> Hashable:
        return (OpenCgroup, self.number)


class EnterCgroup(Step, frozen=True):
    """Write ``0`` to what `OpenCgroup` opened: the single-threaded child moves itself (cgroups(7)).

    The ``tasks`` file moves one thread without the lock that cgroup.procs takes for a process.
    """

    number: int
    path: bytes

    def doing(self) -> str:
        return "enter the container's cgroup"

    def target(self) -> str:
        return printable(self.path)

    def shape(self) -> Hashable:
        return (EnterCgroup, self.number)


class Unshare(Step, frozen=True):
    """unshare(2); for the cgroup namespace, whose root is the cgroup at the time of the call."""

    flags: int

    def doing(self) -> str:
        return "create a namespace"


class SetOomScore(Step, frozen=True):
    """Write /proc/self/oom_score_adj (proc(5)): how willingly the OOM killer takes this process."""

    value: int

    def doing(self) -> str:
        return f"set oom_score_adj to {self.value}"

    def target(self) -> str:
        return "/proc/self/oom_score_adj"


class SetHostname(Step, frozen=True):
    """sethostname(2)."""

    name: bytes

    def doing(self) -> str:
        return "set the hostname"

    def target(self) -> str:
        return printable(self.name)

    def own(self) -> Values:
        return (self.name,)

    def shape(self) -> Hashable:
        return SetHostname


class LoopbackUp(Step, frozen=True):
    """Set IFF_UP on ``lo`` (netdevice(7))."""

    def doing(self) -> str:
        return "bring the loopback interface up"


class SessionKeyring(Step, frozen=True):
    """A keyring of its own, so that the host's keys cannot be reached (session-keyring(7))."""

    def doing(self) -> str:
        return "create a session keyring"


class OpenTerminal(Step, frozen=True):
    """A new pseudoterminal of the container's own devpts, on all three standard streams, as the
    controlling terminal of the session (pty(7), ioctl_tty(2)). Its other side goes to the keeper.

    :ivar owner: uid that the terminal belongs to; its group stays devpts's, tty
    :ivar size: ``struct winsize``, known before the command starts
    """

    owner: int
    size: bytes

    def doing(self) -> str:
        return "open a terminal"

    def target(self) -> str:
        return "/dev/pts/ptmx"


class NullInput(Step, frozen=True):
    """Standard input of a process without an input pipe: the /dev/null that we made ourselves.

    :ivar ours: or else the one of a container that we joined, if that is one at all
    """

    ours: bool

    def doing(self) -> str:
        return "connect standard input to /dev/null"


class NullOutput(Step, frozen=True):
    """Standard output and error to where `NullInput` has led standard input."""

    def doing(self) -> str:
        return "connect the output to /dev/null"


class CloseDescriptors(Step, frozen=True):
    """close_range(2) of all but the standard streams and the error pipe, which is close-on-exec.

    While chdir runs, no descriptor may refer to anything of the host (CVE-2024-21626).
    """

    def doing(self) -> str:
        return "close inherited descriptors"


class Credentials(Step, frozen=True):
    """Take on ``uid``, ``gid`` and ``groups``; keep ``capabilities`` at most (capabilities(7)).

    :ivar groups: supplementary groups, or None to leave them as they are
    """

    uid: int
    gid: int
    groups: tuple[int, ...] | None
    capabilities: int
    last_capability: int

    def doing(self) -> str:
        return f"become user {self.uid}:{self.gid}"


class ChangeDirectory(Step, frozen=True):
    """chdir(2), then make sure that the directory is inside the container."""

    path: bytes

    def doing(self) -> str:
        return "enter the working directory"

    def target(self) -> str:
        return printable(self.path)

    def own(self) -> Values:
        return (self.path,)

    def shape(self) -> Hashable:
        return (ChangeDirectory, self.path == b"/")


class DieWithKeeper(Step, frozen=True):
    """SIGKILL when the keeper dies (PR_SET_PDEATHSIG): nobody could reap or log it any more."""

    def doing(self) -> str:
        return "tie the container to its keeper"


class Init(Step, frozen=True):
    """Stay as PID 1, reaping and forwarding signals; the rest happens in a child of it."""

    def doing(self) -> str:
        return "start the init process"


class Execute(Step, frozen=True):
    """execve(2) the first of ``candidates`` that the kernel takes."""

    candidates: tuple[bytes, ...]
    arguments: tuple[bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]

    def doing(self) -> str:
        return "execute the command"

    def target(self) -> str:
        return printable(self.arguments[0])

    def own(self) -> Values:
        return (
            *self.candidates,
            self.arguments,
            tuple(b"%b=%b" % variable for variable in self.environment),
        )

    def shape(self) -> Hashable:
        return (Execute, len(self.candidates))


class JoinNamespaces(Step, frozen=True):
    """setns(2) into all of ``flags`` at once, through the pidfd sent along (Linux 5.8)."""

    flags: int

    def doing(self) -> str:
        return "enter the container's namespaces"


class ForkInside(Step, frozen=True):
    """Go on in a child: only children are members of a joined pid namespace (setns(2))."""

    def doing(self) -> str:
        return "fork inside the container"
