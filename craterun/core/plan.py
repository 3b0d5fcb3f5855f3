"""From what was asked for to what is done: pure functions that build launch plans."""

from __future__ import annotations

import os

from craterun.core import flags as f
from craterun.core import hostroot, mounts
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.capabilities import DEFAULT_CAPABILITIES, capability_mask
from craterun.core.cgroups import CgroupPlan
from craterun.core.spec import DEFAULT_PATH, HostFacts, Identity, RootDirectory, Spec

RUN_NAMESPACES = f.CLONE_NEWPID | f.CLONE_NEWNS | f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWNET
"""Namespaces that the first process is created in. The cgroup namespace follows by unshare(2)."""

JOIN_NAMESPACES = RUN_NAMESPACES | f.CLONE_NEWCGROUP


def plan_run(
    spec: Spec,
    host: HostFacts,
    *,
    hostname: str,
    root: RootDirectory | None,
    identity: Identity,
    cgroups: CgroupPlan,
) -> s.LaunchPlan:
    """The plan of a new container.

    :param root: the checked rootfs directory, or None for the built-in one
    :param identity: what ``spec.user`` means inside that rootfs
    :param cgroups: directories that exist by the time the plan is carried out
    """
    plan: list[s.Step] = [s.SetSession(), *_join(cgroups)]
    plan += [s.Unshare(f.CLONE_NEWCGROUP), s.PrivateMounts()]
    if root is None:
        plan += hostroot.create_steps(host, hostname)
        plan.append(s.EnterRoot())
        plan += hostroot.bind_steps(host)
    else:
        source = os.fsencode(root.path)
        plan.append(s.CloneTree(op.SLOT_ROOT, source, 0, root.device, root.inode))
        plan.append(s.EnterRoot())
    plan += mounts.scratch_steps(hostname, cover_etc=root is not None)
    plan += mounts.kernel_filesystem_steps()
    plan += mounts.device_steps(bind_devices=host.user_namespace)
    plan += mounts.protection_steps()
    plan += [
        s.PivotRoot(),
        s.SetHostname(hostname.encode()),
        s.LoopbackUp(),
        s.SessionKeyring(),
        s.Stdio(),
        s.CloseDescriptors(),
    ]
    plan += _become(identity, spec.capabilities, host, mapped=host.user_namespace)
    plan += [s.ChangeDirectory(os.fsencode(spec.workdir)), s.DieWithKeeper()]
    if spec.init:
        plan.append(s.Init())
    plan.append(_execute(spec.command, environment(spec.env, identity, hostname), spec.workdir))
    return s.LaunchPlan(
        steps=tuple(plan),
        clone_flags=RUN_NAMESPACES,
        cgroup=os.fsencode(cgroups.unified or ""),
        stdin=spec.interactive,
        owner=identity.uid,
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
    join_user: bool = False,
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES,
) -> s.LaunchPlan:
    """The plan of a further process in a running container, whose pidfd goes with the request.

    :param join_user: the container has a user namespace of its own, in which we become root
    """
    flags = JOIN_NAMESPACES | (f.CLONE_NEWUSER if join_user else 0)
    plan: list[s.Step] = [
        s.SetSession(),
        *_join(cgroups),
        s.SessionKeyring(),
        s.JoinNamespaces(flags),
        s.ForkInside(),
        s.Stdio(),
        s.CloseDescriptors(),
        *_become(identity, capabilities, host, mapped=join_user or host.user_namespace),
        s.ChangeDirectory(os.fsencode(workdir)),
        s.DieWithKeeper(),
        _execute(command, environment(env, identity, hostname), workdir),
    ]
    return s.LaunchPlan(
        steps=tuple(plan),
        clone_flags=0,
        cgroup=os.fsencode(cgroups.unified or ""),
        stdin=stdin,
        owner=identity.uid,
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


def _join(cgroups: CgroupPlan) -> list[s.Step]:
    # The `tasks` file moves one thread without the lock that cgroup.procs takes for a process.
    return [s.JoinCgroup(os.fsencode(f"{path}/tasks")) for path in cgroups.legacy]


def _become(
    identity: Identity, capabilities: tuple[str, ...], host: HostFacts, *, mapped: bool
) -> list[s.Step]:
    # Where only one uid is mapped, setgroups(2) is denied, and there is no group to leave.
    groups = None if mapped and not identity.groups else identity.groups
    mask = capability_mask(capabilities)
    return [s.Credentials(identity.uid, identity.gid, groups, mask, host.last_capability)]


def _execute(command: tuple[str, ...], env: dict[str, str], workdir: str) -> s.Step:
    return s.Execute(
        tuple(os.fsencode(c) for c in command_candidates(command[0], env["PATH"], workdir)),
        tuple(os.fsencode(argument) for argument in command),
        tuple((os.fsencode(k), os.fsencode(v)) for k, v in env.items()),
    )
