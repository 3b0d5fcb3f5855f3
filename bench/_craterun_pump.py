"""Let one container write much to its stdout, and time it until the log has it.

    python bench/_craterun_pump.py ROOTFS STATE_ROOT BYTES COMMAND...

Prints {"bytes", "seconds", "logged"} as JSON.  The time runs from before the
container's start to the end of its wait; "logged" is the size of all files
below the state root, which is how the caller knows that nothing was left out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import trio

from bench.ground import warm_memory
from craterun import Spec, Supervisor
from craterun.bench.leave import cancelled_on_signals
from craterun.core.logoptions import LogOptions


async def measure(rootfs: str, state_root: str, size: int, command: tuple[str, ...]) -> float:
    """Run the command, and give the seconds it took."""
    # All of it is to be found afterwards: no rotation.
    spec = Spec(rootfs=rootfs, command=command, log=LogOptions(max_bytes=0))
    async with cancelled_on_signals(), Supervisor(root=state_root) as supervisor:
        warm_memory(2 * size)
        begin = time.perf_counter()
        container = await supervisor.start(spec)
        status = await container.wait()
        seconds = time.perf_counter() - begin
        if status.exit_code != 0:
            raise SystemExit(f"{container.id} ended with {status}")
    return seconds


def logged(state_root: str) -> int:
    """Give the size of all files that the containers left."""
    return sum(path.lstat().st_size for path in Path(state_root).rglob("*") if path.is_file())


def main() -> None:
    """Read the arguments, measure, print the report."""
    rootfs, state_root, size, *command = sys.argv[1:]
    seconds = trio.run(measure, rootfs, state_root, int(size), tuple(command))
    print(json.dumps({"bytes": int(size), "seconds": seconds, "logged": logged(state_root)}))


if __name__ == "__main__":
    main()
