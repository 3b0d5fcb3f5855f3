"""A fault in what all containers of a supervisor share ends it, with their records written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import cli_environment
from tests.containers.helpers import PATIENCE_SECONDS

_FAULT = """
import importlib, sys, trio
from craterun import Spec, Supervisor

module, name, state, rootfs = sys.argv[1:]
kind = getattr(importlib.import_module(f"craterun.supervisor.{module}"), name)
serve, fault = kind.serve, trio.Event()

async def faulty(self):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, self)
        await fault.wait()
        raise RuntimeError("a fault of ours")

kind.serve = faulty

async def main():
    async with Supervisor(state) as supervisor:
        spec = Spec(command=("sh", "-c", "echo begun; exec sleep 600"), rootfs=rootfs)
        containers = [await supervisor.start(spec) for _ in range(3)]
        fault.set()
        await containers[0].wait()
        await trio.sleep_forever()

def leaves(error):
    return sum(map(leaves, error.exceptions), []) if hasattr(error, "exceptions") else [error]

try:
    trio.run(main)
except BaseException as error:
    print(*map(repr, leaves(error)), sep="\\n")
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("link", "KeeperLink"), ("clerk", "Clerk"), ("oom", "OomMonitor"), ("readiness", "Readiness")],
)
def test_it_ends_with_that_fault_and_hangs_nobody(
    module: str, name: str, rootfs: Path, state_root: Path
) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _FAULT, module, name, str(state_root), str(rootfs)],
        capture_output=True,
        text=True,
        env=cli_environment(state_root),
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == ("RuntimeError('a fault of ours')\n", "")
    records = [json.loads(path.read_text()) for path in state_root.glob("*/metadata.json")]
    assert [record["status"] for record in records] == ["stopped"] * 3
    assert not [record for record in records if Path(f"/proc/{record['pid']}/root").exists()]
