"""Containers of one kind: the same spec again and again, as judges, CI and benchmarks have it.

What was asked for is checked, planned and described once. From one container to the next only its
id and host name differ, with the paths of its cgroups; they are filled in where marks stand for
them. (Measured: an eighth of the supervisor's time for a short container.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from craterun.core.cgroups import CgroupPlan
from craterun.core.launchplan import FilledPlan, LaunchPlan
from craterun.core.life import Record, State
from craterun.core.plan import plan_run
from craterun.core.spec import HOST_ROOTFS, HostFacts, Identity, RootDirectory, Spec
from craterun.linux import cgroup

_MOST = 64
# Nobody can guess them, so that they stand nowhere else.
_ID = os.urandom(16).hex()
_HOSTNAME = os.urandom(16).hex()
_ID_BYTES, _HOSTNAME_BYTES = _ID.encode(), _HOSTNAME.encode()

_encoder = msgspec.msgpack.Encoder()


class Kind:
    """One spec on one host, in one root directory."""

    def __init__(self, facts: HostFacts, root: RootDirectory | None, identity: Identity) -> None:
        self._found = (facts, root, identity)
        self._plan: LaunchPlan | None = None
        self._record: Record | None = None
        self._values: list[bytes | tuple[bytes, ...]] = []
        self._marked: tuple[int, ...] = ()

    def is_of(self, facts: HostFacts, root: RootDirectory | None, identity: Identity) -> bool:
        """Whether this is still what the kind was made for."""
        return self._found[0] is facts and self._found[1:] == (root, identity)

    def describe(
        self, spec: Spec, container_id: str, hostname: str, cgroups: CgroupPlan
    ) -> tuple[LaunchPlan | FilledPlan, Record]:
        """Plan and first record of one more container, as `plan_run` and `first_record` have them.

        :param cgroups: those of `linux.cgroup.plan_for`
        """
        facts, root, identity = self._found

        def whole() -> LaunchPlan:
            return plan_run(
                spec, facts, hostname=hostname, root=root, identity=identity, cgroups=cgroups
            )

        if self._plan is None or self._record is None:
            self._make(spec)
        assert self._plan is not None
        assert self._record is not None
        record = msgspec.structs.replace(
            self._record,
            id=container_id,
            name=spec.name,
            hostname=hostname,
            created=datetime.now(UTC),
            cgroups=cgroups.paths,
        )
        return self._filled(container_id, hostname, cgroups, whole), record

    def _make(self, spec: Spec) -> None:
        facts, root, identity = self._found
        cgroups = cgroup.plan_for(spec, _ID, facts)
        plan = plan_run(
            spec, facts, hostname=_HOSTNAME, root=root, identity=identity, cgroups=cgroups
        )
        self._record = first_record(spec, _ID, _HOSTNAME, root, cgroups)
        self._values = [value for part in plan.parts for value in part.own()]
        self._marked = tuple(
            [number for number, value in enumerate(self._values) if _is_marked(value)]
        )
        self._plan = plan

    def _filled(
        self,
        container_id: str,
        hostname: str,
        cgroups: CgroupPlan,
        whole: Callable[[], LaunchPlan],
    ) -> LaunchPlan | FilledPlan:
        assert self._plan is not None
        own = os.fsencode(container_id), os.fsencode(hostname)
        values = self._values.copy()
        for number in self._marked:
            value = values[number]
            values[number] = (
                _fill(value, *own)
                if isinstance(value, bytes)
                else tuple([_fill(part, *own) for part in value])
            )
        return FilledPlan(self._plan, tuple(values), os.fsencode(cgroups.unified or ""), whole)


class Kinds:
    """The kinds that a supervisor has started lately."""

    def __init__(self) -> None:
        self._known: dict[bytes, Kind] = {}

    def key(self, spec: Spec) -> bytes | None:
        """What is the same for specs of one kind; None if it cannot be told."""
        if spec.name is not None:
            spec = msgspec.structs.replace(spec, name=None)
        try:
            return _encoder.encode(spec)
        except (UnicodeEncodeError, TypeError, OverflowError):
            return None  # bytes that are no UTF-8; or what `Spec.check` is about to refuse

    def get(self, key: bytes | None) -> Kind | None:
        """The kind, if it has been started before."""
        return None if key is None else self._known.get(key)

    def add(self, key: bytes | None, kind: Kind) -> None:
        """One has been started."""
        if key is None:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = kind


def first_record(
    spec: Spec,
    container_id: str,
    hostname: str,
    root: RootDirectory | None,
    cgroups: CgroupPlan,
) -> Record:
    """What is on record of a container before it is started."""
    return Record(
        id=container_id,
        name=spec.name,
        status=State.CREATED,
        rootfs=_as_text(root.path) if root else HOST_ROOTFS,
        command=tuple(map(_as_text, spec.command)),
        env={_as_text(key): _as_text(value) for key, value in spec.env.items()},
        workdir=_as_text(spec.workdir),
        user=None if spec.user is None else _as_text(spec.user),
        hostname=hostname,
        interactive=spec.interactive,
        terminal=spec.terminal,
        oom_score_adj=spec.oom_score_adj,
        timeout=spec.timeout,
        stop_signal=spec.stop_signal,
        stop_seconds=spec.stop_seconds,
        restart=spec.restart,
        init=spec.init,
        auto_remove=spec.auto_remove,
        created=datetime.now(UTC),
        limits=spec.limits.as_text(),
        cgroups=cgroups.paths,
        log=spec.log,
    )


def _as_text(argument: str) -> str:
    """``argument`` for a JSON file: bytes that are no UTF-8 as escapes."""
    return os.fsencode(argument).decode("utf-8", "backslashreplace")


def _is_marked(value: bytes | tuple[bytes, ...]) -> bool:
    whole = value if isinstance(value, bytes) else b"\0".join(value)
    return _ID_BYTES in whole or _HOSTNAME_BYTES in whole


def _fill(value: bytes, container_id: bytes, hostname: bytes) -> bytes:
    return value.replace(_ID_BYTES, container_id).replace(_HOSTNAME_BYTES, hostname)
