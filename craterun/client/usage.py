"""What containers use, sampled: all that run, or some.

Sampling is polling by nature, so it is kept cheap: cgroup files stay open from one sample to the
next, and a container that has ended is not looked at again until its record changes.
"""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from craterun.client.local import observe, running_process
from craterun.client.observing import placed
from craterun.core.errors import CraterunError
from craterun.core.life import Process, Record
from craterun.core.stats import Usage, cpu_nanoseconds, cpu_percent, figures
from craterun.linux.fd import Fd
from craterun.linux.meter import Meter
from craterun.linux.proc import open_process
from craterun.state.glance import METADATA
from craterun.state.store import Store


class StatsMonitor:
    """Samples containers until it is closed; also a context manager.

    :ivar problems: what was wrong with containers that were asked for and are not sampled
    """

    def __init__(self, store: Store, containers: Iterable[str] = ()) -> None:
        """:param containers: ids, prefixes or names; none: all that run, at each sample"""
        self.problems: list[CraterunError] = []
        self._store = store
        self._watched: dict[str, _Watched] = {}
        self._over: dict[str, tuple[int, int]] = {}
        texts = tuple(containers)
        self._all = not texts
        _raise_open_files()
        try:
            for text in texts:
                try:
                    self._watch(*running_process(store, text))
                except CraterunError as error:
                    self.problems.append(error)
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether the containers that were asked for have all ended."""
        return not self._all and not self._watched

    def sample(self) -> list[Usage]:
        """The figures of each container that runs now, the oldest first."""
        if self._all:
            self._look_for_new()
        samples = []
        for watched in sorted(self._watched.values(), key=lambda watched: watched.record.created):
            usage = watched.sample()
            if usage is None:
                self._watched.pop(watched.record.id).close()
            else:
                samples.append(usage)
        return samples

    def _look_for_new(self) -> None:
        ids = self._store.ids()
        for container_id in ids:
            if container_id in self._watched:
                continue
            version = self._version(container_id)
            if version is None or self._over.get(container_id) == version:
                continue
            try:
                record = self._store.load(container_id)
                observed = observe(self._store, record)
                if not observed.running:
                    self._over[container_id] = version
                elif record.process is not None:
                    self._watch(record, record.process)
            except CraterunError:
                self._over[container_id] = version  # damaged: `ps` says so
        self._over = {i: self._over[i] for i in ids if i in self._over}

    def _version(self, container_id: str) -> tuple[int, int] | None:
        """Of its record, which is replaced by rename whenever it changes."""
        try:
            found = os.stat(os.path.join(self._store.path(container_id), METADATA))
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _watch(self, record: Record, process: Process) -> None:
        if record.id in self._watched:
            return  # asked for twice
        with suppress(ProcessLookupError):
            self._watched[record.id] = _Watched(record, Fd(open_process(process)))

    def close(self) -> None:
        """Close all files."""
        while self._watched:
            self._watched.popitem()[1].close()

    def __enter__(self) -> StatsMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Watched:
    """One running container."""

    def __init__(self, record: Record, pidfd: Fd) -> None:
        """Takes ownership of ``pidfd``."""
        self.record = record
        self._pidfd = pidfd
        self._ended = select.poll()
        self._ended.register(pidfd.fileno(), select.POLLIN)
        self._meter = Meter(placed(record))
        self._before: tuple[int, int] | None = None

    def sample(self) -> Usage | None:
        """None: it has ended."""
        try:
            clock, contents = self._meter.read()
        except ProcessLookupError:
            return None
        if self._ended.poll(0):
            return None
        used = cpu_nanoseconds(contents)
        now = None if used is None else (clock, used)
        fields: dict[str, Any] = figures(contents)
        percent = cpu_percent(self._before, now)
        self._before = now
        return Usage(
            id=self.record.id,
            name=self.record.name,
            time=datetime.now(UTC),
            cpu_percent=percent,
            **fields,
        )

    def close(self) -> None:
        self._pidfd.close()
        self._meter.close()


def _raise_open_files() -> None:
    """A container takes a dozen descriptors here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
