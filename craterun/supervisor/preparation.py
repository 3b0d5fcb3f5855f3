"""What comes before a launch: checks, plan, folder, cgroups; and what undoes it."""

from __future__ import annotations

import logging
import time

import trio

from craterun.core import hostroot
from craterun.core.launchplan import FilledPlan, LaunchPlan
from craterun.core.life import Record
from craterun.core.plan import plan_run
from craterun.core.restart import Condition
from craterun.core.spec import HOST_ROOTFS, Identity, RootDirectory, Spec
from craterun.core.units import new_id
from craterun.linux import cgroup, host
from craterun.linux.fd import Fd
from craterun.linux.rootfs import check_rootfs, look_up_user
from craterun.linux.shortage import require_room
from craterun.state.restart import write_spec
from craterun.state.store import Store
from craterun.supervisor.kinds import Kind, Kinds, first_record

logger = logging.getLogger("craterun")

_MAX_ROOTS = 256
_FILES_TO_COME = 6
"""Descriptors that a start takes after its folder: pidfd, streams, the OOM counter's news; with a
terminal, three of that and its doorway."""


class Prepared:
    """A start between its preparation and its launch."""

    __slots__ = ("begun", "directory", "plan", "record")

    def __init__(
        self, record: Record, plan: LaunchPlan | FilledPlan, directory: Fd, begun: int
    ) -> None:
        self.record = record
        self.plan = plan
        self.directory = directory
        self.begun = begun


class Preparation:
    """Prepares starts, and remembers what it has found out for the next ones.

    :ivar facts: what this host can do
    """

    def __init__(self, store: Store) -> None:
        self.facts = host.probe()
        self._store = store
        self._roots: dict[str, RootDirectory] = {}
        self._kinds = Kinds()

    def look_again(self, *, at_host: bool) -> None:
        """See `Supervisor.look_again`."""
        self._roots.clear()
        if at_host:
            self.facts = host.probe()

    def doubt(self, rootfs: str) -> None:
        """A start in this directory has failed: it may have been swapped."""
        self._roots.pop(rootfs, None)

    def check(self, spec: Spec) -> bytes | None:
        """Raise `UsageError` for what no host could run. Returns the spec's kind, for `prepare`."""
        key = self._kinds.key(spec)
        if self._kinds.get(key) is None:
            spec.check()
        return key

    async def examine(self, spec: Spec) -> tuple[RootDirectory | None, Identity]:
        """The rootfs, checked, and who the user is there."""
        root = self._roots.get(spec.rootfs)
        if spec.user is None and (spec.rootfs == HOST_ROOTFS or root is not None):
            return root, Identity()
        # In a thread of its own: the directory may be on a file server that does not answer.
        return await trio.to_thread.run_sync(look_at_rootfs, spec, self._roots)

    def prepare(
        self,
        spec: Spec,
        key: bytes | None,
        root: RootDirectory | None,
        identity: Identity,
        container_id: str | None,
        under_way: int,
    ) -> Prepared:
        """By the clerk: everything that makes files, before anything is started.

        :param key: from `check`
        :param under_way: starts for whose descriptors there has to be room
        """
        begun = time.monotonic_ns()
        container_id = container_id or new_id()
        hostname = spec.hostname or container_id[:12]
        cgroups = cgroup.plan_for(spec, container_id, self.facts)
        plan: LaunchPlan | FilledPlan
        kind = self._kinds.get(key)
        if kind is not None and kind.is_of(self.facts, root, identity):
            plan, record = kind.describe(spec, container_id, hostname, cgroups)
        else:
            self._kinds.add(key, Kind(self.facts, root, identity))
            plan = plan_run(
                spec, self.facts, hostname=hostname, root=root, identity=identity, cgroups=cgroups
            )
            record = first_record(spec, container_id, hostname, root, cgroups)
        logger.debug("%s: cgroups %s", record.id, cgroups.paths)
        directory = Fd(self._store.create(record))
        try:
            require_room(directory.fileno(), _FILES_TO_COME * under_way)
            if spec.restart.condition is not Condition.NO:
                write_spec(directory.fileno(), spec)
            cgroup.create(cgroups)
        except BaseException:
            directory.close()
            self._store.remove(record)
            raise
        return Prepared(record, plan, directory, begun)

    def undo(self, prepared: Prepared) -> None:
        """By the clerk: leave nothing of a start that failed."""
        # If the keeper died, the child that was being started is still dying.
        cgroup.end(prepared.record.cgroups)
        prepared.directory.close()
        self._store.remove(prepared.record)


def look_at_rootfs(
    spec: Spec, known: dict[str, RootDirectory]
) -> tuple[RootDirectory | None, Identity]:
    """The rootfs, checked, and who the user is there.

    :param known: rootfs that were checked; added to
    """
    if spec.rootfs == HOST_ROOTFS:
        return None, look_up_user(spec.user, None, (hostroot.USERS, hostroot.GROUPS))
    # Checked once for each path: the child compares device and inode when it opens the tree, so a
    # directory that was swapped since is noticed without asking the mount table again.
    root = known.get(spec.rootfs)
    if root is None:
        if len(known) >= _MAX_ROOTS:  # a rootfs for each job, perhaps
            known.clear()
        root = known[spec.rootfs] = check_rootfs(spec.rootfs)
    return root, look_up_user(spec.user, root.path)
