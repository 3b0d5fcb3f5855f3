"""From steps to system calls: what the child does between clone3 and execve, call by call.

The child of a Python process pays for every page that it touches: about 2 µs, since reference
counts make the kernel copy it, or because it has to be mapped again. Carried out by a method for
each kind of step, a start took 300 page faults and nearly 1 ms of them; one loop over prepared
calls takes 80. So everything that can be known beforehand is known here: the arguments as C wants
them, and the number of each descriptor that will be opened, since the kernel gives the lowest free
one (open(2)) and the child begins with none but the standard streams and the error pipe.

A call is ``(function, arguments, wanted, lenient)``. Any other result than ``wanted`` (None: any
that is not negative) is a failure. It ends the child, unless ``lenient`` is ``(errnos, skip)`` and
errno is among those, or there are none: then the next ``skip`` calls are left out.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOENT
from typing import Any, TypeVar

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.assembler import Assembler, Slots

S = TypeVar("S", bound=s.Step)

_NO_LINKS = f.RESOLVE_BENEATH | f.RESOLVE_NO_SYMLINKS | f.RESOLVE_NO_MAGICLINKS
_IN_ROOT = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_MAGICLINKS
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_CAPABILITY_VERSION_3 = 0x20080522
_ANY: tuple[int, ...] = ()


_MAX_ASSEMBLED = 256
_assembled: dict[tuple[int, tuple[tuple[object, int], ...]], tuple[s.Part, Slots]] = {}


def assemble(
    groups: Iterable[Sequence[s.Step]],
    *,
    clone_flags: int,
    cgroup: bytes,
    stdin: bool,
    owner: int,
    join: bool = False,
    terminal: bool = False,
    merged: bool = False,
) -> s.LaunchPlan:
    """The plan of ``groups``: a tuple is a group that other plans have as well, one and the same
    object, and is assembled only once; a list is this plan's own.

    :param join: the child finds the pidfd of the container to join on `opcodes.JOIN_FD`
    :param terminal: it finds the socket to pass a terminal out by on the descriptor after that
    """
    given = (*(("join",) if join else ()), *(("terminal",) if terminal else ()))
    slots: Slots = {name: number for number, name in enumerate(given, op.JOIN_FD)}
    parts = []
    for group in groups:
        if isinstance(group, tuple):
            part, slots = _assemble_once(group, slots)
        else:
            assembler = _translate(group, slots)
            slots = assembler.slots
            part = s.Part(tuple(group), tuple(assembler.calls), tuple(assembler.origins))
        parts.append(part)
    return s.LaunchPlan(tuple(parts), clone_flags, cgroup, stdin, owner, terminal, merged)


def _assemble_once(group: tuple[s.Step, ...], slots: Slots) -> tuple[s.Part, Slots]:
    key = (id(group), tuple(slots.items()))
    known = _assembled.get(key)
    if known is None:
        if len(_assembled) >= _MAX_ASSEMBLED:
            _assembled.clear()
        assembler = _translate(group, slots)
        code = marshal.dumps(tuple(assembler.calls))
        # The part keeps the group alive, so that its id is not given to another one.
        known = s.Part(group, code, tuple(assembler.origins)), assembler.slots
        _assembled[key] = known
    return known


def _translate(steps: Sequence[s.Step], slots: Slots) -> Assembler:
    assembler = Assembler(slots)
    for assembler.step, step in enumerate(steps):
        _ASSEMBLE[type(step)](assembler, step)
    return assembler


# --- pieces ---------------------------------------------------------------------------------------


def _how(flags: int, mode: int, resolve: int) -> tuple[bytes, int]:
    """``struct open_how`` and its size (openat2(2))."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return how, len(how)


def _set_attributes(a: Assembler, mount: int, attributes: int, recursive: bool) -> None:
    """mount_setattr(2) with a ``struct mount_attr``."""
    if attributes:
        attr = struct.pack("QQQQ", attributes, 0, 0, 0)
        flags = f.AT_EMPTY_PATH | (f.AT_RECURSIVE if recursive else 0)
        a.call("mount_setattr", mount, b"", flags, attr, len(attr))


def _clone(a: Assembler, slot: object, base: int, source: bytes, recursive: bool) -> int:
    """open_tree(2): a detached copy of the mount that ``source`` is on."""
    flags = f.OPEN_TREE_CLONE | f.OPEN_TREE_CLOEXEC | (f.AT_RECURSIVE if recursive else 0)
    return a.open(slot, "open_tree", base, source, flags)


def _move(a: Assembler, mount: int, target: int) -> None:
    """move_mount(2) of a detached mount onto what ``target`` refers to."""
    how = f.MOVE_MOUNT_F_EMPTY_PATH | f.MOVE_MOUNT_T_EMPTY_PATH
    a.call("move_mount", mount, b"", target, b"", how)


@contextmanager
def _target(a: Assembler, path: bytes, how: int) -> Iterator[int]:
    """Open a mount target inside the root; the calls of the block are left out without one."""
    root = a.slots[op.SLOT_ROOT]
    if how == op.TARGET_DIRECTORY:
        # First, since it nearly always exists: one cheap refusal instead of a decision.
        a.call("mkdirat", root, path, 0o755)
        a.tolerate(*_ANY)
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY
        yield a.open("target", "openat2", root, path, *_how(flags, 0, _NO_LINKS))
        a.close("target")
    elif how == op.TARGET_EXISTING:
        flags = os.O_PATH | os.O_NOFOLLOW
        target = a.open("target", "openat2", root, path, *_how(flags, 0, _NO_LINKS))
        with a.if_it_worked(ENOENT):
            yield target
            a.close("target")
    else:
        # Symlinks are followed, as if the rootfs were "/": /etc/resolv.conf often is one. A target
        # that does not exist is made only if no symlink is involved (O_EXCL follows none at the
        # end); a rootfs that is read-only or has no /etc does without.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        a.open("target", "openat2", root, path, *_how(flags, 0o644, _IN_ROOT))
        with a.if_it_worked(*_ANY):
            a.close("target")
        target = a.open("target", "openat2", root, path, *_how(os.O_PATH, 0, _IN_ROOT))
        with a.if_it_worked(*_ANY):
            yield target
            a.close("target")


def _attach_slot(a: Assembler, slot: object, path: bytes, how: int) -> None:
    with _target(a, path, how) as target:
        _move(a, a.slots[slot], target)


# --- one function for each kind of step -----------------------------------------------------------

_ASSEMBLE: dict[type[s.Step], Callable[[Assembler, Any], None]] = {}


def _assembles(
    kind: type[S],
) -> Callable[[Callable[[Assembler, S], None]], Callable[[Assembler, S], None]]:
    def register(function: Callable[[Assembler, S], None]) -> Callable[[Assembler, S], None]:
        _ASSEMBLE[kind] = function
        return function

    return register


@_assembles(s.SetSession)
def _(a: Assembler, step: s.SetSession) -> None:
    a.call("setsid", wanted=None)


@_assembles(s.OpenCgroup)
def _(a: Assembler, step: s.OpenCgroup) -> None:
    flags = os.O_WRONLY | os.O_CLOEXEC
    a.open(("cgroup", step.number), "openat", f.AT_FDCWD, step.path, flags)


@_assembles(s.EnterCgroup)
def _(a: Assembler, step: s.EnterCgroup) -> None:
    a.call("write", a.slots["cgroup", step.number], b"0", 1, wanted=1)
    a.close(("cgroup", step.number))


@_assembles(s.Unshare)
def _(a: Assembler, step: s.Unshare) -> None:
    a.call("unshare", step.flags)


@_assembles(s.PrivateMounts)
def _(a: Assembler, step: s.PrivateMounts) -> None:
    a.call("mount", None, b"/", None, f.MS_REC | f.MS_PRIVATE, None)


@_assembles(s.SetOomScore)
def _(a: Assembler, step: s.SetOomScore) -> None:
    path = b"/proc/self/oom_score_adj"
    file = a.open("file", "openat", f.AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC)
    text = str(step.value).encode()
    a.call("write", file, text, len(text), wanted=len(text))
    a.close("file")


@_assembles(s.CloneTree)
def _(a: Assembler, step: s.CloneTree) -> None:
    tree = _clone(a, step.slot, f.AT_FDCWD, step.source, recursive=True)
    if step.inode:
        a.special("check_directory", tree, step.device, step.inode)
    _set_attributes(a, tree, step.attributes, recursive=True)


@_assembles(s.NewFilesystem)
def _(a: Assembler, step: s.NewFilesystem) -> None:
    context = a.open("context", "fsopen", step.kind, f.FSOPEN_CLOEXEC)
    # The source is what mount(8) shows.
    for key, value in ((b"source", step.kind), *step.options):
        if value:
            a.call("fsconfig", context, f.FSCONFIG_SET_STRING, key, value, 0)
        else:
            a.call("fsconfig", context, f.FSCONFIG_SET_FLAG, key, None, 0)
    a.call("fsconfig", context, f.FSCONFIG_CMD_CREATE, None, None, 0)
    a.open(step.slot, "fsmount", context, f.FSMOUNT_CLOEXEC, step.attributes)
    a.close("context")


@_assembles(s.EnterRoot)
def _(a: Assembler, step: s.EnterRoot) -> None:
    # On top of "/": it always exists, and path look-ups of this process still begin below it, so
    # that the host's files can be bound until pivot_root.
    root = a.slots[op.SLOT_ROOT]
    a.call("move_mount", root, b"", f.AT_FDCWD, b"/", f.MOVE_MOUNT_F_EMPTY_PATH)
    a.call("fchdir", root)


@_assembles(s.Park)
def _(a: Assembler, step: s.Park) -> None:
    mount = a.slots[step.slot]
    a.call("move_mount", mount, b"", f.AT_FDCWD, b"/proc", f.MOVE_MOUNT_F_EMPTY_PATH)


@_assembles(s.Attach)
def _(a: Assembler, step: s.Attach) -> None:
    _attach_slot(a, step.slot, step.path, step.how)
    if step.close:
        a.close(step.slot)


@_assembles(s.MakeDirectory)
def _(a: Assembler, step: s.MakeDirectory) -> None:
    a.call("mkdirat", a.slots[step.slot], step.path, step.mode)


@_assembles(s.MakeFile)
def _(a: Assembler, step: s.MakeFile) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    file = a.open("file", "openat", a.slots[step.slot], step.path, flags, step.mode)
    if step.content:
        a.call("write", file, step.content, len(step.content), wanted=len(step.content))
    a.close("file")


@_assembles(s.MakeSymlink)
def _(a: Assembler, step: s.MakeSymlink) -> None:
    a.call("symlinkat", step.to, a.slots[step.slot], step.path)


@_assembles(s.MakeDevice)
def _(a: Assembler, step: s.MakeDevice) -> None:
    mode = 0o020666  # S_IFCHR
    device = os.makedev(step.major, step.minor)
    a.call("mknodat", a.slots[op.SLOT_DEV], step.path, mode, device)


@_assembles(s.Bind)
def _(a: Assembler, step: s.Bind) -> None:
    base = a.slots[step.slot] if step.slot >= 0 else f.AT_FDCWD
    recursive = step.how == op.TARGET_DIRECTORY
    with _target(a, step.path, step.how) as target:
        tree = _clone(a, "tree", base, step.source, recursive)
        _set_attributes(a, tree, step.attributes, recursive)
        _move(a, tree, target)
        a.close("tree")


@_assembles(s.RemountReadonly)
def _(a: Assembler, step: s.RemountReadonly) -> None:
    with _target(a, step.path, op.TARGET_EXISTING) as target:
        tree = _clone(a, "tree", a.slots[op.SLOT_ROOT], step.path, recursive=True)
        _set_attributes(a, tree, f.MOUNT_ATTR_RDONLY, recursive=True)
        _move(a, tree, target)
        a.close("tree")


@_assembles(s.Mask)
def _(a: Assembler, step: s.Mask) -> None:
    with _target(a, step.path, op.TARGET_EXISTING) as target:
        if step.directory:
            tree = _clone(a, "tree", a.slots[op.SLOT_FILES], b"empty", recursive=False)
            _set_attributes(a, tree, f.MOUNT_ATTR_RDONLY, recursive=False)
        else:
            tree = _clone(a, "tree", a.slots[op.SLOT_DEV], b"null", recursive=False)
        _move(a, tree, target)
        a.close("tree")


@_assembles(s.PivotRoot)
def _(a: Assembler, step: s.PivotRoot) -> None:
    # Both on the same directory: the old root ends up on top of the new one, from where it is
    # detached, so that no directory for it is needed in the rootfs (pivot_root(2), NOTES).
    a.call("pivot_root", b".", b".")
    a.call("umount2", b".", f.MNT_DETACH)
    a.call("chdir", b"/")


@_assembles(s.SetHostname)
def _(a: Assembler, step: s.SetHostname) -> None:
    a.call("sethostname", step.name, len(step.name))


@_assembles(s.LoopbackUp)
def _(a: Assembler, step: s.LoopbackUp) -> None:
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    sock = a.open("socket", "socket", int(socket.AF_INET), int(kind), 0)
    # struct ifreq, with room for the largest member of its union.
    request = struct.pack("16sH22x", b"lo", _IFF_UP)
    a.call("ioctl", sock, _SIOCSIFFLAGS, request)
    a.close("socket")


@_assembles(s.SessionKeyring)
def _(a: Assembler, step: s.SessionKeyring) -> None:
    a.special("session_keyring")


@_assembles(s.OpenTerminal)
def _(a: Assembler, step: s.OpenTerminal) -> None:
    a.special("open_terminal", a.slots.pop("terminal"), step.owner, step.size)


@_assembles(s.NullInput)
def _(a: Assembler, step: s.NullInput) -> None:
    if step.ours:
        flags = os.O_RDWR | os.O_CLOEXEC
        null = a.open("null", "openat", a.slots[op.SLOT_DEV], b"null", flags)
        a.call("dup2", null, 0)
        a.close("null")
    else:
        a.special("joined_null")


@_assembles(s.CloseDescriptors)
def _(a: Assembler, step: s.CloseDescriptors) -> None:
    a.call("close_range", op.ERROR_FD + 1, -1, 0)
    a.slots.clear()


@_assembles(s.Credentials)
def _(a: Assembler, step: s.Credentials) -> None:
    for capability in range(step.last_capability + 1):
        if not step.capabilities >> capability & 1:
            a.call("prctl", f.PR_CAPBSET_DROP, capability, 0, 0, 0)
    a.call("prctl", f.PR_CAP_AMBIENT, f.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if step.groups is not None:
        groups = struct.pack(f"{len(step.groups)}I", *step.groups)
        a.call("setgroups", len(step.groups), groups)
    a.call("setresgid", step.gid, step.gid, step.gid)
    a.call("setresuid", step.uid, step.uid, step.uid)
    kept = step.capabilities if step.uid == 0 else 0
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # Effective, permitted, inheritable; of the lower and then of the upper 32 capabilities.
    a.call("capset", struct.pack("Ii", _CAPABILITY_VERSION_3, 0),
           struct.pack("6I", low, low, 0, high, high, 0))  # fmt: skip


@_assembles(s.ChangeDirectory)
def _(a: Assembler, step: s.ChangeDirectory) -> None:
    a.call("umask", 0o022)
    a.call("chdir", step.path)
    if step.path != b"/":
        a.special("check_inside")


@_assembles(s.DieWithKeeper)
def _(a: Assembler, step: s.DieWithKeeper) -> None:
    # After the credentials: changing them clears the signal (prctl(2)). If the keeper died before
    # this call, the error pipe has no reader any more, which poll reports as POLLERR.
    a.call("prctl", f.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    a.call("poll", struct.pack("ihh", op.ERROR_FD, 0, 0), 1, 0)


@_assembles(s.Init)
def _(a: Assembler, step: s.Init) -> None:
    a.special("start_init")


@_assembles(s.Execute)
def _(a: Assembler, step: s.Execute) -> None:
    a.special("execute", step.candidates, step.arguments, step.environment)


@_assembles(s.JoinNamespaces)
def _(a: Assembler, step: s.JoinNamespaces) -> None:
    a.call("setns", a.slots["join"], step.flags)


@_assembles(s.ForkInside)
def _(a: Assembler, step: s.ForkInside) -> None:
    a.special("fork_inside")
