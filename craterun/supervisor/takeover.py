"""A successor: what the keeper starts when its supervisor has died and containers live on.

Descriptors, pids and exit statuses come from the keeper; everything else is in the containers'
folders. Bytes that the dead supervisor had read from a pipe but not yet written are lost; bytes
still in the pipe are not.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress

import trio

from craterun.core import opcodes as op
from craterun.core.errors import CraterunError
from craterun.core.launchplan import LaunchPlan
from craterun.core.life import Record, State
from craterun.core.plan import plan_run
from craterun.core.restart import Condition
from craterun.linux import cgroup, host
from craterun.linux.calls import set_process_name
from craterun.linux.fd import Fd
from craterun.state.journal import Told
from craterun.state.restart import read_spec
from craterun.state.store import Store
from craterun.supervisor.container import Container
from craterun.supervisor.launched import Launched
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.lives import Relaunch, launch_container, restarted_record, running_record
from craterun.supervisor.main import look_after
from craterun.supervisor.preparation import look_at_rootfs
from craterun.supervisor.services import Services

logger = logging.getLogger("craterun")


def main(number: int, protocol: int = 0) -> None:
    """Entry of the successor's process.

    :param number: inherited descriptor of the socket to the keeper, its parent
    :param protocol: the keeper's `opcodes.PROTOCOL`: it may be older than what is installed now
    """
    set_process_name(b"craterun")
    sock = socket.socket(fileno=number)
    sock.set_inheritable(False)
    link = KeeperLink(None, sock)
    link.can_launch = protocol == op.PROTOCOL
    trio.run(_take_over, link)


async def _take_over(link: KeeperLink) -> None:
    facts = host.probe()
    # "/": whatever their folders are on, correct in every case.
    services = Services(link, "/", facts)
    told: dict[str, Told] = {}
    async with services.serving(), trio.open_nursery() as tasks:
        for launched in await link.adopt():
            root = os.path.dirname(os.fsdecode(launched.cookie))
            if root not in told:
                told[root] = Told(root)
            tasks.start_soon(_adopt, services, launched, told[root])
    cgroup.remove_parents(facts)


async def _adopt(services: Services, launched: Launched, told: Told) -> None:
    """Look after one container to its end, whatever state its launch was in."""
    path = os.fsdecode(launched.cookie)
    store, container_id = Store(os.path.dirname(path)), os.path.basename(path)
    await launched.settled.wait()
    directory = Fd(launched.lock.take())
    record: Record | None
    try:
        record = store.load(container_id)
        if launched.failure is not None:
            # Whoever asked for it is gone, too: leave nothing of it.
            cgroup.remove(record.cgroups)
            store.remove(record)
    except CraterunError:
        # Without its record nobody could find it any more, in any list.
        logger.exception("container %s cannot be taken over and is killed", container_id)
        record = None
    if record is None or launched.failure is not None:
        await _drop(services.link, launched)
        directory.close()
        return
    if record.status is State.CREATED:
        record = running_record(record, launched)
    elif record.status is State.RESTARTING and launched.pid != record.pid:
        record = restarted_record(record, launched)
    container = Container(
        services,
        store,
        record,
        launched,
        directory,
        adopted=True,
        told=told,
        relaunch=_relaunch(services, store, record, directory),
    )
    await look_after(container)


def _relaunch(services: Services, store: Store, record: Record, directory: Fd) -> Relaunch | None:
    if record.restart.condition is Condition.NO:
        return None

    def plan() -> LaunchPlan:
        facts, spec = host.probe(), read_spec(directory.fileno())
        root, identity = look_at_rootfs(spec, {})
        return plan_run(
            spec,
            facts,
            hostname=record.hostname,
            root=root,
            identity=identity,
            cgroups=cgroup.plan_for(spec, record.id, facts),
        )

    async def relaunch(ended: Launched) -> Launched:
        return await launch_container(
            services.link,
            await trio.to_thread.run_sync(plan),
            store.path(record.id),
            directory.fileno(),
            ended,
        )

    return relaunch


async def _drop(link: KeeperLink, launched: Launched) -> None:
    """End a process that has no place to be logged to."""
    if launched.failure is None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(launched.pidfd.fileno(), signal.SIGKILL)
        await launched.exited.wait()
    await link.release(launched)
