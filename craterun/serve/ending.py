"""How a server's containers are stopped when it ends: as by ``craterun stop``, and by who has them.

That command finds its way by files and through /proc. The server may have no descriptor left for
that, and has no need of it: it has their processes. What does take files is done as far as it can
be, so that each container has its time all the same.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress

import trio

from craterun.client import local
from craterun.core.errors import ContainerNotRunningError, CraterunError
from craterun.core.life import Record
from craterun.core.restart import Condition
from craterun.linux.shortage import explained
from craterun.state.restart import request_end
from craterun.state.store import Store
from craterun.supervisor.container import Container

logger = logging.getLogger("craterun")


async def stop(container: Container, store: Store) -> None:
    """Its stop signal, SIGKILL when it has not ended within its stop timeout; until it has ended.

    :param store: where the container is
    """
    record = container.record
    await _try(_announce, store, record, record.stop_signal)
    with suppress(ContainerNotRunningError):
        # Which also sees to it that it is not started again.
        container.send_signal(record.stop_signal)
    await _try(local.wake, store, record)
    with trio.move_on_after(record.stop_seconds) as patience:
        await container.wait()
    if patience.cancelled_caught:
        await _try(_announce, store, container.record, int(signal.SIGKILL))
        container.kill()
        await container.wait()


async def _try(work: Callable[..., None], *arguments: object) -> None:
    """Do ``work`` on files, in a thread; on a host that has no room for it, do without."""
    try:
        with explained("stop a container"):
            await trio.to_thread.run_sync(work, *arguments)
    except (CraterunError, OSError) as error:
        logger.debug("%s", error)


def _announce(store: Store, record: Record, number: int) -> None:
    """Before the signal. Whoever takes over from us, should we die now, is to know of it, too."""
    if record.restart.condition is not Condition.NO:
        request_end(store.path(record.id))
    local.note_signal(store, record, number)
