"""exec, up to the command's execve: find the container, check it, join it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from craterun.core.errors import (
    ContainerNotRunningError,
    ContainerPausedError,
    CraterunError,
    KernelRefusedError,
    LimitError,
)
from craterun.core.launchplan import LaunchPlan
from craterun.core.life import Process, Record, State
from craterun.core.plan import plan_exec
from craterun.core.spec import HostFacts, check_process
from craterun.linux import cgroup, emptying, freezer, placement
from craterun.linux.fd import Fd
from craterun.linux.proc import is_exiting, open_process
from craterun.linux.rootfs import look_up_user
from craterun.linux.userns import same_user_namespace
from craterun.supervisor.execution import Execution
from craterun.supervisor.lives import refusal
from craterun.supervisor.threads import in_thread

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec
    from craterun.state.store import Store
    from craterun.supervisor.services import Services


class Prepared(msgspec.Struct):
    """An exec between its preparation and its launch.

    :ivar pidfd: of the container's first process; owned
    :ivar group: the exec's own cgroup, or ""
    """

    record: Record
    process: Process
    plan: LaunchPlan
    pidfd: Fd
    group: str


def prepare(
    store: Store, facts: HostFacts, text: str, spec: ExecSpec, known: Iterable[Record]
) -> Prepared:
    """Everything before the launch. Blocks.

    :param text: id, prefix or name of the container
    :param known: records of our own containers, whose files lag behind for a moment
    :raises CraterunError: the container cannot be joined
    """
    container_id = store.resolve(text)
    record = next((own for own in known if own.id == container_id), None)
    record = record or store.load(container_id)
    not_running = _not_running(record)
    if record.process is None or record.status is State.STOPPED:
        raise not_running
    try:
        pidfd = Fd(open_process(record.process))
    except ProcessLookupError:
        raise not_running from None
    group = ""
    try:
        require_unpaused(record, facts)
        workdir = spec.workdir if spec.workdir is not None else record.workdir
        check_process(spec.command, spec.env, workdir)
        identity = look_up_user(spec.user, f"/proc/{record.process.pid}/root")
        joined = cgroup.of_process(record.process.pid, facts, record.id)
        if is_exiting(record.process.pid):  # the kernel says other things of it then
            raise not_running
        if record.limits and not joined.paths:
            raise LimitError(
                f"the limits of container {record.id} would not hold for the command: its "
                "cgroup is not ours to join; run exec where the container was started"
            )
        cgroups, group = cgroup.for_exec(joined, facts, record.id)
        plan = plan_exec(
            spec.command,
            facts,
            env={**record.env, **spec.env},
            hostname=record.hostname,
            workdir=workdir,
            identity=identity,
            cgroups=cgroups,
            stdin=spec.stdin,
            output=not spec.detached,
            window=spec.window,
            oom_score_adj=record.oom_score_adj,
            join_user=not same_user_namespace(record.process.pid),
        )
    except BaseException as error:
        pidfd.close()
        if group:
            cgroup.remove([group])
        if isinstance(error, ProcessLookupError | FileNotFoundError):
            raise not_running from None
        raise
    return Prepared(record, record.process, plan, pidfd, group)


async def launch(services: Services, prepared: Prepared, spec: ExecSpec) -> Execution:
    """Have the keeper launch it; returns when its command was executed.

    Takes ownership of what is ``prepared``.

    :raises CraterunError: a step failed; the message says which
    """
    group = prepared.group
    try:
        try:
            launched = await services.link.launch(
                prepared.plan,
                join=prepared.pidfd.fileno(),
                group=group,
                # Nobody but us would hold it to its time.
                lives_on=spec.detached and spec.timeout is None,
            )
        finally:
            prepared.pidfd.close()
        await launched.settled.wait()
        if launched.failure is not None:
            raise refusal(services.link, prepared.plan, launched.failure)
        try:
            return Execution(launched, prepared.record.id, spec, group)
        except BaseException:
            await services.link.drop(launched)
            raise
    except BaseException as error:
        if group:
            await in_thread(emptying.end, [group])
        if isinstance(error, KernelRefusedError | ContainerNotRunningError) and is_exiting(
            prepared.process.pid
        ):
            raise _not_running(prepared.record) from error
        raise


def require_unpaused(record: Record, facts: HostFacts) -> None:
    """Check that a process born in this container's cgroups would get to run.

    :raises ContainerPausedError: it would be stopped before its first instruction
    """
    found = freezer.find(placement.locate(record.id, record.pid, facts.hierarchies))
    if found is not None and any(found.state()):
        raise ContainerPausedError(
            f"container {record.id} is paused; let it go on first: craterun unpause {record.id}"
        )


def _not_running(record: Record) -> CraterunError:
    return ContainerNotRunningError(
        f"container {record.id} is not running; exec needs a running one"
    )
