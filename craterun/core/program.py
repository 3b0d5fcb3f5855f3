"""From steps to system calls: what the child does between clone3 and execve, call by call.

The child makes them in one loop and decides nothing: most children are machine code
(`keeper.native`), and for a Python child (`keeper.child`) every page that it touches costs 2 µs,
since it has to be copied or mapped again. So everything that can be known beforehand is known here:
the arguments as C wants them, and the number of each descriptor that will be opened, since the
kernel gives the lowest free one (open(2)) and the child begins with none but the standard streams
and the error pipe.

Plans of one shape share their calls: what a step has of its own (`steps.Step.own`) is not in them
but is referred to by number, and handed over beside them.

A call is ``(function, arguments, wanted, lenient)``. Any other result than ``wanted`` (None: any
that is not negative) is a failure. It ends the child, unless ``lenient`` is ``(errnos, skip)`` and
errno is among those, or there are none: then the next ``skip`` calls are left out.
"""

from __future__ import annotations

import itertools
import marshal
import os
import signal
import socket
import struct
from collections.abc import Hashable, Iterable, Sequence

from craterun.core import flags as f
from craterun.core import native
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.assembler import Assembler, Slots, Translations
from craterun.core.launchplan import LaunchPlan, Part, Template
from craterun.core.mount_program import MOUNTS

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_CAPABILITY_VERSION_3 = 0x20080522

_MAX_TEMPLATES = 256
_templates: dict[Hashable, tuple[Template, Slots, Sequence[s.Step]]] = {}
_numbers = itertools.count()


def assemble(
    groups: Iterable[Sequence[s.Step]],
    *,
    clone_flags: int,
    cgroup: bytes,
    stdin: bool,
    owner: int,
    blank: bool = False,
    join: bool = False,
    terminal: bool = False,
    merged: bool = False,
) -> LaunchPlan:
    """The plan of ``groups``: a tuple is a group that other plans have as well, one and the same
    object; a list is this plan's own. Either way, what was assembled once is not assembled again.

    :param blank: the child finds the blank mount namespace on `opcodes.GIVEN_FD`
    :param join: it finds the pidfd of the container to join there
    :param terminal: it finds the socket to pass a terminal out by on the descriptor after that
    """
    given = {"blank": blank, "join": join, "terminal": terminal}
    names = [name for name, is_given in given.items() if is_given]
    slots: Slots = {name: number for number, name in enumerate(names, op.GIVEN_FD)}
    first = native.FIRST_VALUE
    parts = []
    for group in groups:
        template, slots = _template_of(group, slots, first)
        parts.append(Part(tuple(group), template, first))
        first += template.values
    return LaunchPlan(tuple(parts), clone_flags, cgroup, stdin, owner, terminal, merged, blank)


def _template_of(group: Sequence[s.Step], slots: Slots, first: int) -> tuple[Template, Slots]:
    what = id(group) if isinstance(group, tuple) else tuple([step.shape() for step in group])
    key = (what, first, *slots.items())
    known = _templates.get(key)
    if known is None:
        if len(_templates) >= _MAX_TEMPLATES:
            _templates.clear()
        assembler = Assembler(slots, first)
        for step in group:
            assembler.translate(step, TRANSLATIONS[type(step)])
        template = Template(
            next(_numbers),
            tuple(assembler.calls),
            tuple(assembler.origins),
            _as_native(assembler),
            marshal.dumps(tuple(assembler.calls)) if assembler.values == first else None,
            assembler.values - first,
        )
        # With the group: so that its id is not given to another one.
        known = _templates[key] = (template, assembler.slots, group)
    return known[:2]


def _as_native(assembler: Assembler) -> native.Native | None:
    if not native.SUPPORTED or assembler.values > native.MAX_VALUES:
        return None
    return native.translate(assembler.calls)


# --- one function for each kind of step -----------------------------------------------------------

TRANSLATIONS = Translations(MOUNTS)
_assembles = TRANSLATIONS.of


@_assembles(s.SetSession)
def _(a: Assembler, step: s.SetSession) -> None:
    a.call("setsid", wanted=None)


@_assembles(s.OpenCgroup)
def _(a: Assembler, step: s.OpenCgroup) -> None:
    flags = os.O_WRONLY | os.O_CLOEXEC
    a.open(("cgroup", step.number), "openat", f.AT_FDCWD, a.own(), flags)


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
    a.call("sethostname", a.own(), a.length())


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
    a.call("chdir", a.own())
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
    count = len(step.candidates)
    candidates = tuple(a.own(place) for place in range(count))
    a.special("execute", candidates, a.own(count), a.own(count + 1))


@_assembles(s.JoinNamespaces)
def _(a: Assembler, step: s.JoinNamespaces) -> None:
    a.call("setns", a.slots["join"], step.flags)


@_assembles(s.ForkInside)
def _(a: Assembler, step: s.ForkInside) -> None:
    a.special("fork_inside")
