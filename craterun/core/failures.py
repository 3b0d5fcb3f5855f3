"""From (step, errno, evidence) to an exception with a sentence.

The child of a launch reports numbers only. Here they meet the plan that the child was carrying out.
"""

from __future__ import annotations

import errno as e
import os

from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ContainerNotRunningError,
    CraterunError,
    KernelRefusedError,
    LimitError,
    RootfsError,
    UsageError,
    printable,
)
from craterun.core.launchplan import LaunchPlan

_CLONE_HINTS = {
    e.EAGAIN: "the limit on processes is reached (ulimit -u, or a pids cgroup)",
    e.ENOMEM: "the host is out of memory",
    e.ENOSPC: "the limit on namespaces is reached (/proc/sys/user/max_*_namespaces)",
    e.EPERM: "creating namespaces is not permitted here",
    e.EMFILE: "the limit on open files is reached (ulimit -n)",
}
_INITRAMFS = "the host's root is an initramfs, which pivot_root cannot leave"
_ONE_USER = "in a container started without root, 0 is the only user and group"
_SHORTAGES = (e.EAGAIN, e.EMFILE, e.ENFILE, e.ENOMEM)
_ELF_MACHINES = {
    0x03: "i386", 0x08: "MIPS", 0x15: "PowerPC64", 0x16: "s390", 0x28: "ARM", 0x3E: "x86-64",
    0xB7: "AArch64", 0xF3: "RISC-V", 0x102: "LoongArch",
}  # fmt: skip


def explain(
    plan: LaunchPlan, number: int, errno: int, evidence: bytes, cause: str = ""
) -> CraterunError:
    """The exception for a failed launch.

    :param number: of the call that failed, counted over the whole plan; -1 if there was no child
    :param evidence: empty, or first a byte that tells what follows: ``x``: an internal error;
        ``c``: the system call; ``p``: what `keeper.child` knows about the file that would not
        execute, or, if there was no child, the path of the call
    :param cause: what the world says about it, if somebody has looked
    """
    kind, text = evidence[:1], evidence[1:]
    if kind == b"x":
        return CraterunError(f"internal error while starting the container: {printable(text)}")
    if number < 0:
        call = text.decode() if kind == b"c" else f"open {printable(text)}"
        hint = cause or _CLONE_HINTS.get(errno, "")
        if errno == e.EINVAL:
            hint = {"fchown": _ONE_USER, "pivot_root": _INITRAMFS}.get(call, "")
        return KernelRefusedError("start a process", call, "", errno, hint)
    failed, call = plan.origin(number)
    if kind == b"c" and text:
        call = text.decode()
    if isinstance(failed, s.Execute):
        return _explain_execute(failed, errno, text, cause)
    if isinstance(failed, s.ChangeDirectory):
        return _explain_directory(failed, errno)
    if isinstance(failed, m.CloneTree) and errno == e.ESTALE:
        return RootfsError(
            f"rootfs {failed.target()} was replaced while the container was starting"
        )
    if (
        isinstance(failed, m.Bind)
        and failed.how == op.TARGET_FILE
        and (call, errno) == ("move_mount", e.EINVAL)
    ):
        return RootfsError(
            f"the rootfs's /{printable(failed.path)} is a directory where a file belongs; remove it"
        )
    if isinstance(failed, m.Attach | m.Bind) and errno in (e.ELOOP, e.ENOTDIR, e.EXDEV):
        return RootfsError(
            f"the rootfs's /{printable(failed.path)} is a symlink or not a directory; nothing can "
            "be mounted there safely; replace it by an empty directory"
        )
    if isinstance(failed, m.Attach) and errno == e.ENOENT:
        return RootfsError(
            f"the rootfs has no /{printable(failed.path)} and it cannot be made there (read-only, "
            "or not permitted); create the directory"
        )
    if isinstance(failed, s.JoinNamespaces) and errno == e.ESRCH:
        return ContainerNotRunningError("the container has just ended")
    refused = KernelRefusedError(
        failed.doing(), call, failed.target(), errno, _hint(failed, errno) or cause
    )
    if isinstance(failed, s.SetOomScore) and errno == e.EACCES:
        return LimitError(str(refused))  # what was asked for cannot be had here: no fault of ours
    return refused


def _hint(failed: s.Step, errno: int) -> str:
    if errno == e.EACCES and isinstance(failed, s.SetOomScore):
        return (
            "it takes CAP_SYS_RESOURCE to go below the value that craterun itself was started with"
        )
    if errno == e.EPERM:
        return "the process lacks a capability, or a security module forbids it"
    if errno == e.EINVAL and isinstance(failed, s.Credentials):
        return _ONE_USER
    if errno == e.ENODEV and isinstance(failed, m.NewFilesystem):
        return "this kernel was built without that filesystem"
    if errno == e.EINVAL and isinstance(failed, m.PivotRoot):
        return _INITRAMFS
    if errno == e.EINVAL and isinstance(failed, m.CloneTree) and failed.below < 0:
        return "it is on an unbindable mount (mount --make-private changes that); try again"
    if errno == e.ELOOP and isinstance(failed, m.EnterRoot):
        return "a mount namespace has been mounted somewhere in it (findmnt -t nsfs); try again"
    if errno == e.EAGAIN and isinstance(failed, s.ForkInside | s.Init):
        return "the container's limit on processes is reached (craterun update --pids)"
    if errno in (e.ENOENT, e.ESRCH, e.ENODEV) and isinstance(failed, s.OpenCgroup | s.EnterCgroup):
        return "the cgroup was removed by somebody else"
    return ""


def _explain_directory(failed: s.ChangeDirectory, errno: int) -> CraterunError:
    path = printable(failed.path)
    if errno == e.ENOENT:
        return UsageError(f"workdir {path} does not exist in the container")
    if errno == e.ENOTDIR:
        return UsageError(f"workdir {path} is not a directory in the container")
    if errno == e.EACCES:
        return UsageError(f"workdir {path} may not be entered by the container's user")
    return UsageError(f"workdir {path}: {os.strerror(errno)}")


def _explain_execute(failed: s.Execute, errno: int, evidence: bytes, cause: str) -> CraterunError:
    name = printable(failed.arguments[0])
    path, _, head = evidence.partition(b"\0")
    if not path:
        where = "" if b"/" in failed.arguments[0] else " in the container's PATH"
        return CommandNotFoundError(f"command '{name}' not found{where}")
    shown = printable(path)
    if errno in _SHORTAGES:  # which says nothing of the file
        return KernelRefusedError(f"execute {shown}", "execve", "", errno, cause)
    reason = {
        e.ENOENT: _missing_interpreter(head),
        e.ENOEXEC: _bad_format(head),
        e.EACCES: "permission denied; it is a directory, lacks the execute bit, or is on a noexec "
        "mount",
        e.E2BIG: "argument list too long for the kernel; pass data in a file or on stdin",
        e.ETXTBSY: "it is open for writing",
        e.ELOOP: "too many levels of symlinks or interpreters",
    }.get(errno, os.strerror(errno))
    return CommandNotExecutableError(f"cannot execute {shown}: {reason}")


def _missing_interpreter(head: bytes) -> str:
    if head.startswith(b"#!"):
        line = head[2:].split(b"\n", 1)[0]
        words = line.split()
        if words and not line.endswith(b"\r"):
            return f"its interpreter {printable(words[0])} does not exist in the container"
        return "its interpreter line ends in a carriage return (DOS line ends) or is empty"
    if head.startswith(b"\x7fELF"):
        return (
            "its dynamic loader or a library's loader does not exist in the container (ELF for "
            f"{_elf_machine(head)}); use a statically linked program or add the loader"
        )
    return os.strerror(e.ENOENT)


def _bad_format(head: bytes) -> str:
    if head.startswith(b"\x7fELF"):
        machine = _elf_machine(head)
        return f"it is an ELF file for {machine}, which this {os.uname().machine} kernel cannot run"
    if not head:
        return "the file is empty"
    return "it is neither an ELF file nor a script with an interpreter line (#!)"


def _elf_machine(head: bytes) -> str:
    order = "big" if head[5:6] == b"\x02" else "little"
    number = int.from_bytes(head[18:20], "big" if order == "big" else "little")
    return _ELF_MACHINES.get(number, f"machine number {number}")
