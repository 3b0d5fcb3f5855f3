"""From what was asked for to what is done: pure functions that build launch plans.

A plan is made of groups of steps. A tuple is a group that many containers share, made once and
assembled once (`core.program`); a list is what is particular to one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from functools import cache, lru_cache

from craterun.core import flags as f
from craterun.core import hostroot, mounts
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.capabilities import DEFAULT_CAPABILITIES, capability_mask
from craterun.core.cgroups import CgroupPlan
from craterun.core.launchplan import LaunchPlan
from craterun.core.program import assemble
from craterun.core.spec import DEFAULT_PATH, HostFacts, Identity, RootDirectory, Spec

RUN_NAMESPACES = f.CLONE_NEWPID | f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWNET
"""Namespaces that the first process is created in. That of mounts comes with the root, that of
cgroups by unshare(2).
"""

JOIN_NAMESPACES = RUN_NAMESPACES | f.CLONE_NEWNS | f.CLONE_NEWCGROUP

_NULL_INPUT = (s.NullInput(ours=True),)


def plan_run(
    spec: Spec,
    host: HostFacts,
    *,
    hostname: str,
    root: RootDirectory | None,
    identity: Identity,
    cgroups: CgroupPlan,
) -> LaunchPlan:
    """The plan of a new container.

    :param root: the checked rootfs directory, or None for the built-in one
    :param identity: what ``spec.user`` means inside that rootfs
    :param cgroups: directories that exist by the time the plan is carried out
    """
    legacy = [os.fsencode(f"{path}/tasks") for path in cgroups.legacy]
    blank = host.blank and (root is None or root.bindable)
    first: list[s.Step] = [s.SetSession()]
    if spec.oom_score_adj is not None:
        first.append(s.SetOomScore(spec.oom_score_adj))
    first += [s.OpenCgroup(number, path) for number, path in enumerate(legacy)]
    if not blank:
        first.append(m.PrivateMounts())
    groups: list[Sequence[s.Step]] = [first]
    if root is None:
        groups += [hostroot.create_steps(host), hostroot.etc_steps(hostname)]
        groups.append(hostroot.clone_steps(host))
    else:
        groups.append(_root_tree(root))
    groups.append(_enter_root(blank=blank))
    groups.append(hostroot.attach_steps(host) if root is None else mounts.etc_steps(hostname))
    groups.append(mounts.kernel_filesystem_steps())
    groups.append(mounts.device_steps(bind_devices=host.user_namespace))
    groups.append(mounts.protection_steps())
    terminal = [_terminal(identity, spec.window)] if spec.terminal else []
    groups.append([
        m.LeaveBlank() if blank else m.PivotRoot(),
        s.SetHostname(hostname.encode()),
        s.LoopbackUp(),
        s.SessionKeyring(),
        *terminal,
        *(s.EnterCgroup(number, path) for number, path in enumerate(legacy)),
        s.Unshare(f.CLONE_NEWCGROUP),
    ])  # fmt: skip
    if not spec.interactive and not spec.terminal:
        groups.append(_NULL_INPUT)
    mapped = host.user_namespace
    groups.append(_become(identity, spec.capabilities, host.last_capability, mapped=mapped))
    last: list[s.Step] = [s.ChangeDirectory(os.fsencode(spec.workdir)), s.DieWithKeeper()]
    if spec.init:
        last.append(s.Init())
    last.append(_execute(spec.command, environment(spec.env, identity, hostname), spec.workdir))
    groups.append(last)
    return assemble(
        groups,
        clone_flags=RUN_NAMESPACES if blank else RUN_NAMESPACES | f.CLONE_NEWNS,
        cgroup=os.fsencode(cgroups.unified or ""),
        stdin=spec.interactive and not spec.terminal,
        owner=identity.uid,
        blank=blank,
        terminal=spec.terminal,
        merged=spec.merge_output,
    )


def plan_exec(
    command: tuple[str, ...],
    host: HostFacts,
    *,
    env: dict[str, str],
    hostname: str,
    workdir: str,
    identity: Identity,
    cgroups: CgroupPlan,
    stdin: bool,
    output: bool = True,
    window: tuple[int, int] | None = None,
    oom_score_adj: int | None = None,
    join_user: bool = False,
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES,
) -> LaunchPlan:
    """The plan of a further process in a running container, whose pidfd goes with the request.

    :param output: without it, what the command writes goes nowhere, and neither has it ``stdin``
    :param window: (rows, columns) of a terminal to get instead of pipes
    :param join_user: the container has a user namespace of its own, in which we become root
    """
    flags = JOIN_NAMESPACES | (f.CLONE_NEWUSER if join_user else 0)
    legacy = [os.fsencode(f"{path}/tasks") for path in cgroups.legacy]
    first: list[s.Step] = [s.SetSession()]
    if oom_score_adj is not None:
        first.append(s.SetOomScore(oom_score_adj))
    for number, path in enumerate(legacy):
        first += [s.OpenCgroup(number, path), s.EnterCgroup(number, path)]
    first += [s.SessionKeyring(), s.JoinNamespaces(flags), s.ForkInside()]
    if window is not None:
        # Once more: only the leader of a session can get a controlling terminal (tty_ioctl(4)).
        first += [s.SetSession(), _terminal(identity, window)]
    elif not stdin:
        first.append(s.NullInput(ours=False))
        if not output:
            first.append(s.NullOutput())
    mapped = join_user or host.user_namespace
    return assemble(
        [
            first,
            _become(identity, capabilities, host.last_capability, mapped=mapped),
            [
                s.ChangeDirectory(os.fsencode(workdir)),
                s.DieWithKeeper(),
                _execute(command, environment(env, identity, hostname), workdir),
            ],
        ],
        clone_flags=0,
        cgroup=os.fsencode(cgroups.unified or ""),
        stdin=stdin and window is None,
        owner=identity.uid,
        join=True,
        terminal=window is not None,
    )


def environment(env: dict[str, str], identity: Identity, hostname: str) -> dict[str, str]:
    """The whole environment of a process: four defaults, overridden by ``env``."""
    defaults = {
        "PATH": DEFAULT_PATH,
        "HOME": identity.home,
        "HOSTNAME": hostname,
        "LANG": "C.UTF-8",
    }
    return {**defaults, **env}


def command_candidates(program: str, path: str, workdir: str) -> tuple[str, ...]:
    """Files that ``program`` may mean, in the order in which execvp(3) would try them.

    Relative entries of ``path`` are relative to ``workdir``; an empty one means ``workdir``.
    """
    if "/" in program:
        return (program,)
    return tuple(f"{directory or '.'}/{program}" for directory in path.split(":"))


def _terminal(identity: Identity, window: tuple[int, int]) -> s.Step:
    return s.OpenTerminal(identity.uid, struct.pack("HHHH", *window, 0, 0))


@lru_cache(maxsize=256)
def _root_tree(root: RootDirectory) -> tuple[s.Step, ...]:
    source = os.fsencode(root.path)
    return (m.CloneTree(op.SLOT_ROOT, source, 0, root.device, root.inode, private=True),)


@cache
def _enter_root(*, blank: bool) -> tuple[s.Step, ...]:
    begin = (m.EnterBlank(),) if blank else ()
    return (*begin, *mounts.scratch_steps(b"/" if blank else b"/proc"), m.EnterRoot())


@lru_cache(maxsize=64)
def _become(
    identity: Identity, capabilities: tuple[str, ...], last_capability: int, *, mapped: bool
) -> tuple[s.Step, ...]:
    # Where only one uid is mapped, setgroups(2) is denied, and there is no group to leave.
    groups = None if mapped and not identity.groups else identity.groups
    mask = capability_mask(capabilities)
    return (
        s.CloseDescriptors(),
        s.Credentials(identity.uid, identity.gid, groups, mask, last_capability),
    )


def _execute(command: tuple[str, ...], env: dict[str, str], workdir: str) -> s.Step:
    return s.Execute(
        tuple(os.fsencode(c) for c in command_candidates(command[0], env["PATH"], workdir)),
        tuple(os.fsencode(argument) for argument in command),
        tuple((os.fsencode(k), os.fsencode(v)) for k, v in env.items()),
    )
