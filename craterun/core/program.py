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
from collections.abc import Iterable, Sequence

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.assembler import Assembler, Slots, Translations
from craterun.core.mount_program import MOUNTS

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_CAPABILITY_VERSION_3 = 0x20080522

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
        TRANSLATIONS[type(step)](assembler, step)
    return assembler


# --- one function for each kind of step -----------------------------------------------------------

TRANSLATIONS = Translations(MOUNTS)
_assembles = TRANSLATIONS.of


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


@_assembles(s.SetOomScore)
def _(a: Assembler, step: s.SetOomScore) -> None:
    path = b"/proc/self/oom_score_adj"
    file = a.open("file", "openat", f.AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC)
    text = str(step.value).encode()
    a.call("write", file, text, len(text), wanted=len(text))
    a.close("file")


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


@_assembles(s.NullOutput)
def _(a: Assembler, step: s.NullOutput) -> None:
    a.call("dup2", 0, 1, wanted=1)
    a.call("dup2", 0, 2, wanted=2)


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
