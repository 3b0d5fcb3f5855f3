"""Keep many containers alive under one supervisor, and see what that costs.

    python bench/_craterun_density.py ROOTFS STATE_ROOT COUNT CONCURRENCY IDLE_SECONDS LEVELS

LEVELS are numbers of living containers, ascending, as in 10,1000,2000.  At each of them, prints a
line of JSON: how many are alive; containers per second of COUNT runs of /bin/true beside them; PSS
of the supervisor (this process) and of its keeper in bytes (/proc/PID/smaps_rollup); the processor
time in seconds that each took over IDLE_SECONDS, in which nothing happened; and starts per second
of COUNT further containers that stay, and are killed when all have been started.  Then it waits for
a line on its stdin before it goes on, so that others can be measured beside the containers.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import trio

from craterun import Container, Spec, Supervisor
from craterun.bench.leave import cancelled_on_signals

STAY = ("/bin/sleep", "1000000")


def pss(pid: int) -> int:
    """Proportional set size of a process, in bytes."""
    return memory_figure(f"/proc/{pid}/smaps_rollup", "Pss")


def memory_figure(path: str, wanted: str) -> int:
    """One of the figures in a file of proc(5), in bytes."""
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) * 1024
    raise SystemExit(f"this kernel tells no {wanted} in {path}")


def processor_seconds(pid: int) -> float:
    """Time on a processor, of a process with one busy thread (/proc/PID/schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def parent_of(pid: int) -> int:
    """Whose child a process is."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Density:
    """One supervisor and the containers that it keeps alive."""

    def __init__(self, supervisor: Supervisor, rootfs: str, concurrency: int) -> None:
        """Begin with none alive."""
        self.supervisor = supervisor
        self.rootfs = rootfs
        self.concurrency = concurrency
        self.alive: list[Container] = []
        self.keeper = 0

    async def at_once(self, count: int, *command: str, keep: bool) -> float:
        """Start so many, and give the time it took; unless kept, wait for their ends, too."""
        numbers = iter(range(count))
        spec = Spec(rootfs=self.rootfs, command=command)

        async def worker() -> None:
            for _ in numbers:
                container = await self.supervisor.start(spec)
                if keep:
                    self.alive.append(container)
                elif (status := await container.wait()).exit_code != 0:
                    raise SystemExit(f"{container.id} ended with {status}")

        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(self.concurrency):
                nursery.start_soon(worker)
        return time.perf_counter() - begin

    def memory(self) -> dict[str, int]:
        """PSS of both processes."""
        gc.collect()
        found = {"supervisor": pss(os.getpid())}
        if self.keeper:
            found["keeper"] = pss(self.keeper)
        return found

    async def staying(self, count: int) -> float:
        """Start so many that do not end, and give the time it took; afterwards they are killed."""
        before = len(self.alive)
        seconds = await self.at_once(count, *STAY, keep=True)
        further, self.alive[before:] = self.alive[before:], []
        for container in further:
            container.kill()
        for container in further:
            await container.wait()
        return seconds

    async def level(self, alive: int, count: int, idle: float) -> None:
        """Measure with so many alive, and print it."""
        await self.at_once(alive - len(self.alive), *STAY, keep=True)
        if not self.keeper:
            pid = self.alive[0].record.pid
            assert pid is not None
            self.keeper = parent_of(pid)
        seconds = await self.at_once(count, "/bin/true", keep=False)
        line: dict[str, object] = {"alive": alive, "per_second": count / seconds}
        line["pss_bytes"] = self.memory()
        processes = {"supervisor": os.getpid(), "keeper": self.keeper}
        before = {name: processor_seconds(pid) for name, pid in processes.items()}
        await trio.sleep(idle)
        after = {name: processor_seconds(pid) for name, pid in processes.items()}
        line["idle_processor_seconds"] = {name: after[name] - before[name] for name in processes}
        line["staying_per_second"] = count / await self.staying(count)
        print(json.dumps(line), flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)


async def measure(
    rootfs: str, state: str, count: int, concurrency: int, idle: float, levels: list[int]
) -> None:
    """Go through the levels, then kill everything."""
    async with cancelled_on_signals(), Supervisor(state) as supervisor:
        density = Density(supervisor, rootfs, concurrency)
        try:
            for alive in levels:
                await density.level(alive, count, idle)
        finally:
            for container in density.alive:
                container.kill()


def main() -> None:
    """Read the arguments, and measure."""
    rootfs, state, count, concurrency, idle, levels = sys.argv[1:]
    numbers = [int(number) for number in levels.split(",")]
    trio.run(measure, rootfs, state, int(count), int(concurrency), float(idle), numbers)


if __name__ == "__main__":
    main()
