"""The lives of a container that is started again when it has ended (``--restart``).

Between two lives, the keeper still has the process that has ended, and with it the container's
lock: a successor of this supervisor finds it there and goes on with the policy. The next launch
replaces it in one message. Cgroups and the log are the same for all lives.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import trio

from craterun.core.errors import CraterunError
from craterun.core.failures import explain
from craterun.core.flags import CLONE_NEWNS
from craterun.core.launchplan import FilledPlan, LaunchPlan, whole
from craterun.core.life import ExitStatus, Record, State
from craterun.core.mount_steps import EnterBlank
from craterun.core.phases import Asked, of_start
from craterun.core.restart import HEALTHY_SECONDS, ends_for_good, pause_before
from craterun.core.steps import Unshare
from craterun.linux.inotify import DirectoryWatch
from craterun.linux.proc import boot_id
from craterun.linux.shortage import SHORTAGES, cause
from craterun.state.restart import is_end_requested
from craterun.supervisor.launched import DIED, Failure, Launched
from craterun.supervisor.link import KeeperLink

logger = logging.getLogger("craterun")

Relaunch = Callable[[Launched], Awaitable[Launched]]
"""Launches the container once more, in place of what it is given."""


class Lives:
    """Decides after each life whether there is another one."""

    def __init__(self, record: Record, directory: int, relaunch: Relaunch | None) -> None:
        """:param directory: descriptor of the container's folder, borrowed
        :param relaunch: None if it cannot be started again
        """
        self._policy = record.restart
        self._stop_signal = record.stop_signal
        self._directory = directory
        self._relaunch = relaunch
        self._short_lives = 0
        self._over = False
        self._pause: trio.CancelScope | None = None

    def note_signal(self, number: int) -> None:
        """A signal is being sent through this supervisor."""
        if ends_for_good(number, self._stop_signal):
            self.end()

    def end(self) -> None:
        """No further life."""
        self._over = True
        if self._pause is not None:
            self._pause.cancel()

    def is_to_end(self) -> bool:
        """Whether somebody has asked for the end of the container, here or in another process."""
        return self._over or is_end_requested(self._directory)

    def is_another_wanted(self, record: Record, status: ExitStatus) -> bool:
        """Whether the policy wants another life after one that has ended like this."""
        if record.timed_out or self._relaunch is None or status.exit_code is None:
            return False
        return self._policy.wants(status, record.restarts) and not self.is_to_end()

    async def wait(self, record: Record) -> bool:
        """The pause before the next life; False if somebody wants the container to end meanwhile.

        With too many inotify instances on this host (128 for a user, by default), that is noticed
        only after the pause.
        """
        lived = (datetime.now(UTC) - (record.started or record.created)).total_seconds()
        self._short_lives = 0 if lived >= HEALTHY_SECONDS else self._short_lives + 1
        seconds = pause_before(self._short_lives)
        with trio.move_on_after(seconds) as self._pause:
            try:
                await self._hear_of_end()
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                logger.debug("the end may be heard of late: %s", error)
                await trio.sleep_forever()
        return not self.is_to_end()

    async def _hear_of_end(self) -> None:
        """Until somebody wants the container to end."""
        watch = DirectoryWatch(f"/proc/self/fd/{self._directory}", contents=True)
        try:
            while not self.is_to_end():
                await trio.lowlevel.wait_readable(watch.fileno())
                watch.take()
        finally:
            watch.close()

    async def begin(self, ended: Launched) -> Launched:
        """The next life.

        :raises CraterunError: it cannot be started
        """
        assert self._relaunch is not None
        return await self._relaunch(ended)


def running_record(record: Record, launched: Launched, asked: Asked | None = None) -> Record:
    """``record`` after a successful launch.

    :param asked: when it was asked for; only the supervisor that started it knows
    """
    return msgspec.structs.replace(
        record,
        status=State.RUNNING,
        started=datetime.now(UTC),
        pid=launched.pid,
        start_time=launched.start_time,
        boot_id=boot_id(),
        phases_us=of_start(asked or Asked(), launched.started),
    )


def restarted_record(record: Record, launched: Launched) -> Record:
    """``record`` when another life has begun."""
    again = msgspec.structs.replace(
        record, restarts=record.restarts + 1, finished=None, exit_code=None, signal=None
    )
    return running_record(again, launched)


async def launch_container(
    link: KeeperLink,
    plan: LaunchPlan | FilledPlan,
    path: str,
    directory: int,
    replacing: Launched | None = None,
) -> Launched:
    """Have the keeper start a container; returns when its command was executed.

    :param path: its folder, for a successor of this supervisor
    :param directory: the same, locked; borrowed
    :raises CraterunError: a step failed; the message says which
    """
    launched = await link.start(plan, os.fsencode(path), directory, replacing)
    if launched.failure is not None:
        raise refusal(link, whole(plan), launched.failure)
    return launched


def refusal(link: KeeperLink, plan: LaunchPlan, failure: Failure) -> CraterunError:
    """What a failed launch is told as: if something is short, with what it is."""
    if failure.evidence == DIED:
        return link.death()
    failed = None if failure.call < 0 else plan.origin(failure.call)[0]
    namespaces = 0
    if failed is None:
        namespaces = plan.clone_flags | CLONE_NEWNS * plan.blank
    elif isinstance(failed, EnterBlank):
        namespaces = CLONE_NEWNS
    elif isinstance(failed, Unshare):
        namespaces = failed.flags
    why = cause(
        failure.errno,
        pid=0 if failure.here else link.pid,
        namespaces=namespaces,
        mounting=failed is not None,
    )
    return explain(plan, failure.call, failure.errno, failure.evidence, why)
