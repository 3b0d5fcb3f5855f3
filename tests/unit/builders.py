"""What unit tests are made of: a record, a host, plans, and a check on descriptors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from craterun.core.cgroups import plan_cgroups
from craterun.core.launchplan import LaunchPlan
from craterun.core.life import Record, State
from craterun.core.plan import plan_exec, plan_run
from craterun.core.spec import Hierarchy, HostFacts, Identity, RootDirectory, Spec
from tests.leaks import open_descriptors

ID = "0123456789abcdef"
ROOT = RootDirectory("/srv/rootfs", 254, 4711)
UNIFIED = Hierarchy(2, (), "/sys/fs/cgroup/unified")
MEMORY = Hierarchy(1, ("memory",), "/sys/fs/cgroup/memory")
CPU = Hierarchy(1, ("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct")
DEVICES = Hierarchy(1, ("devices",), "/sys/fs/cgroup/devices")

HOSTILE = b"\x1b]0;owned\x07\n\xff\xe2\x80\xae"
"""Bytes that steer a terminal: an escape sequence, a line end, invalid UTF-8, a bidi override."""

LAYOUTS = {
    "unified": (UNIFIED,),
    "hybrid": (MEMORY, CPU, DEVICES, UNIFIED),
    "legacy": (MEMORY, CPU),
    "none": (),
}


def make_record(**changes: Any) -> Record:
    """A plausible record, with ``changes``."""
    record = Record(
        id=ID,
        name="web",
        status=State.RUNNING,
        rootfs="/srv/rootfs",
        command=("sh", "-c", "echo 'ü'"),
        env={"LANG": "C"},
        workdir="/",
        user=None,
        hostname=ID[:12],
        interactive=False,
        init=True,
        auto_remove=False,
        created=datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
        started=datetime(2024, 2, 29, 12, 30, 16, tzinfo=UTC),
        pid=4321,
        start_time=987654,
        boot_id="3f0d5c36-0000-4000-8000-000000000000",
        limits={"memory": "64m"},
        cgroups=("/sys/fs/cgroup/unified/craterun/x",),
    )
    return msgspec.structs.replace(record, **changes)


def make_host(**changes: Any) -> HostFacts:
    """A host with merged /usr on bin and a directory of its own for lib64, with ``changes``."""
    host = HostFacts(
        kernel=(6, 1),
        hierarchies=LAYOUTS["hybrid"],
        usr_entries=(("bin", "usr/bin"), ("lib64", "")),
        etc_entries=("ld.so.cache", "alternatives/", "ssl/certs/"),
    )
    return msgspec.structs.replace(host, **changes)


def make_run_plan(
    *,
    root: RootDirectory | None = ROOT,
    host: HostFacts | None = None,
    identity: Identity | None = None,
    **asked: Any,
) -> LaunchPlan:
    """The plan of a container for ``Spec(**asked)``."""
    host = host or make_host()
    return plan_run(
        Spec(**{"command": ("sh",), **asked}),
        host,
        hostname=asked.get("hostname") or "box",
        root=root,
        identity=identity or Identity(),
        cgroups=plan_cgroups(ID, host),
    )


def make_exec_plan(
    *,
    host: HostFacts | None = None,
    stdin: bool = False,
    join_user: bool = False,
    groups: tuple[int, ...] = (5,),
    **more: Any,
) -> LaunchPlan:
    """The plan of a further process in a container."""
    host = host or make_host()
    return plan_exec(
        ("id", "-u"),
        host,
        env={"A": "1"},
        hostname="box",
        workdir="/tmp",
        identity=Identity(1000, 1000, groups, "/home/alice"),
        cgroups=plan_cgroups(ID, host),
        stdin=stdin,
        join_user=join_user,
        **more,
    )


def all_run_plans() -> dict[str, LaunchPlan]:
    """A plan for each combination of what changes the order of steps."""
    plans = {}
    for root, bound, init, (layout, found) in itertools.product(
        (None, ROOT), (False, True), (False, True), LAYOUTS.items()
    ):
        host = make_host(user_namespace=bound, blank=not bound, hierarchies=found)
        words = (
            "rootfs" if root else "built-in",
            "bound-devices" if bound else "made-devices",
            "init" if init else "no-init",
            layout,
        )
        plans["/".join(words)] = make_run_plan(root=root, host=host, init=init)
    plans["terminal"] = make_run_plan(terminal=True, oom_score_adj=5)
    return plans


@contextmanager
def no_leaked_descriptors() -> Iterator[None]:
    """Fails if the block leaves with other descriptors than it was entered with."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before
