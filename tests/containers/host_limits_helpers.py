"""Programs that meet a limit of the machine: one supervisor as a library, in its own process; and
a cgroup to set one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from craterun.linux.host import hierarchies
from craterun.linux.proc import parse_mountinfo
from tests.containers.helpers import run_python

PRELUDE = """
import errno, json, os, resource, signal, sys
from pathlib import Path
import trio
from craterun import CraterunError, ExitStatus, Limits, Spec, Stream, Supervisor
from craterun.core.errors import KernelRefusedError
from craterun.core.restart import Condition, RestartPolicy

ROOTFS, STATE, *MORE = sys.argv[1:]
WORDS = "read x; echo out; echo err >&2; exit 7"

def asks(script=WORDS, **options):
    return Spec(rootfs=ROOTFS, command=("sh", "-c", script), interactive=True, **options)

def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

async def ends_right(container):
    "Let it speak: it is logged, and its end is known."
    os.write(container.stdin.fileno(), b"go\\n")
    assert await container.wait() == ExitStatus(7), container.status
    folder = os.path.join(STATE, container.id)
    assert Path(folder, "stdout.log").read_text() == "out\\n"
    assert Path(folder, "stderr.log").read_text() == "err\\n"
    record = json.loads(Path(folder, "metadata.json").read_text())
    assert (record["status"], record["error"]) == ("stopped", None), record

async def refused(supervisor, spec=None):
    "The start that does not fit."
    before = set(os.listdir(STATE))
    try:
        container = await supervisor.start(spec or asks())
    except KernelRefusedError as error:
        assert error.exit_code == 125
        left = set(os.listdir(STATE)) - before - {".events"}
        assert not left, left
        return error
    raise AssertionError(f"{container.id} was started")

async def until_refused(supervisor):
    "As many as fit: those that run, and why the next one does not."
    alive = []
    while True:
        try:
            alive.append(await supervisor.start(asks()))
        except KernelRefusedError as error:
            return alive, error

def cgroups_of(ids):
    found = []
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{top}/{name}" for name in folders if name in ids]
    return found
"""


def program(
    body: str, rootfs: Path, state_root: Path, *arguments: str, prefix: tuple[str, ...] = ()
) -> Any:
    """Run ``async def main()`` of ``body``; what it returns."""
    code = f"{PRELUDE}\n{body}\nprint(json.dumps(trio.run(main)))"
    return run_python(code, rootfs, state_root, *arguments, prefix=prefix)


def in_user_namespace(*sysctls: str) -> tuple[str, ...]:
    """Command in front of one for whose user namespace other values hold, as in ``name=3``."""
    lines = [f"echo {value} >/proc/sys/{name}" for name, value in (s.split("=") for s in sysctls)]
    script = "; ".join(("set -e", *lines, 'exec "$@"'))
    return ("unshare", "--user", "--map-root-user", "--", "sh", "-c", script, "sh")


@pytest.fixture
def own_cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A version 1 cgroup of this test's own, of the controller that it asks for by its name."""
    controller = request.param
    for hierarchy in hierarchies(parse_mountinfo(Path("/proc/self/mountinfo").read_text())):
        if hierarchy.version == 1 and controller in hierarchy.controllers:
            path = Path(hierarchy.mountpoint, f"craterun-test-{os.getpid()}")
            break
    else:
        pytest.skip(f"no version 1 hierarchy has the {controller} controller")
    path.mkdir()
    yield path
    for limit in path.glob("pids.max"):
        limit.write_text("max")  # a test that failed shall not keep a keeper from its end
    path.rmdir()
