"""Every error that craterun raises, with the exit code a command line gives it.

Messages say what was being done, on what, why it was refused and what to do about it. Catch by
class; the text is for people. Exit codes follow the convention that docker and podman share: 125
for the runtime's own errors, 126 for a command that cannot be executed, 127 for one not found.
"""

from __future__ import annotations

import errno as errno_module
import os


class CraterunError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 125


class UsageError(CraterunError):
    """The request contradicts itself or has a malformed value; nothing was done."""


class RootfsError(CraterunError):
    """The rootfs is missing, unsafe, or not one."""


class NeedsRootError(CraterunError):
    """The caller is not root and this host offers no way to be."""


class UnsupportedHostError(CraterunError):
    """The kernel lacks something that craterun builds on."""


class NoSuchContainerError(CraterunError):
    """No container has this id, prefix or name."""


class AmbiguousIdError(CraterunError):
    """More than one container's id begins with this prefix."""


class NameInUseError(CraterunError):
    """Another container has this name."""


class ContainerRunningError(CraterunError):
    """The operation needs a stopped container."""


class ContainerNotRunningError(CraterunError):
    """The operation needs a running container."""


class LimitError(CraterunError):
    """A limit cannot be enforced here, or the kernel refused it; nothing was changed."""


class ContainerPausedError(CraterunError):
    """The operation needs a container whose processes run, and this one's are paused."""


class ContainerNotPausedError(CraterunError):
    """The operation needs a paused container."""


class StateError(CraterunError):
    """A file of the state directory cannot be read, written or understood."""


class KeeperDiedError(CraterunError):
    """The keeper, and with it every container of this supervisor, is gone."""


class ShuttingDownError(CraterunError):
    """Nothing more is started: whoever would do that is ending, and ends what it has started."""


class CommandNotFoundError(CraterunError):
    """The command exists nowhere in the container's PATH."""

    exit_code = 127


class CommandNotExecutableError(CraterunError):
    """The command exists but the kernel does not execute it."""

    exit_code = 126


class KernelRefusedError(CraterunError):
    """A system call failed: what it was for, on what, and why.

    :ivar doing: the purpose, as a verb phrase ("mount the container's /proc")
    :ivar call: the system call ("move_mount")
    :ivar target: what it was called on, or ""
    :ivar errno: the kernel's error number
    :ivar hint: the likely cause or the remedy, or ""
    """

    def __init__(
        self, doing: str, call: str, target: str = "", errno: int = 0, hint: str = ""
    ) -> None:
        self.doing = doing
        self.call = call
        self.target = target
        self.errno = errno
        self.hint = hint
        super().__init__(doing, call, target, errno, hint)

    def __str__(self) -> str:
        what = f"{self.call} {self.target}".strip()
        code = errno_module.errorcode.get(self.errno, str(self.errno))
        why = f"{os.strerror(self.errno)} ({code})"
        text = f"cannot {self.doing}: {what}: {why}" if what else f"cannot {self.doing}: {why}"
        return f"{text}; {self.hint}" if self.hint else text


def printable(text: str | bytes) -> str:
    """``text`` with every character that could steer a terminal escaped.

    Names, paths and file contents that come from a container or from the command line pass through
    here before they become part of a message.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )
