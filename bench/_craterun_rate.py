"""Start /bin/true in containers through one craterun supervisor, and time it.

    python bench/_craterun_rate.py ROOTFS COUNT CONCURRENCY STATE_ROOT [LIMITS]

LIMITS are the fields of craterun.core.limits.Limits as JSON.

Prints {"count", "seconds", "per_second"} as JSON, as floor does.  Only the
loop of starts and waits is timed: not the imports, nor the supervisor's own
start and end.
"""

from __future__ import annotations

import json
import sys
import time

import msgspec
import trio

from craterun import Spec, Supervisor
from craterun.bench.leave import cancelled_on_signals
from craterun.core.limits import Limits


async def measure(
    rootfs: str, count: int, concurrency: int, state_root: str, limits: Limits
) -> float:
    """Run count containers, so many at a time, and give the time it took."""
    spec = Spec(rootfs=rootfs, command=("/bin/true",), limits=limits)
    numbers = iter(range(count))

    async with cancelled_on_signals(), Supervisor(root=state_root) as supervisor:

        async def worker() -> None:
            for _ in numbers:
                container = await supervisor.start(spec)
                status = await container.wait()
                if status.exit_code != 0:
                    raise SystemExit(f"{container.id} ended with {status}")

        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(min(concurrency, count)):
                nursery.start_soon(worker)
        return time.perf_counter() - begin


def main() -> None:
    """Read the arguments, measure, print the report."""
    rootfs, count, concurrency, state_root, *asked = sys.argv[1:]
    limits = msgspec.json.decode(asked[0] if asked else "{}", type=Limits)
    seconds = trio.run(measure, rootfs, int(count), int(concurrency), state_root, limits)
    report = {"count": int(count), "seconds": seconds, "per_second": int(count) / seconds}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
