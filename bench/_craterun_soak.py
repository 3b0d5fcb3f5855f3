"""Send a mixture of containers through one supervisor, and compare it before and after.

    python bench/_craterun_soak.py ROOTFS STATE_ROOT COUNT CONCURRENCY SEED [TRACE]

Every container's result is checked by its files, and the container removed.  Prints one JSON
document: how many there were of each kind, what was wrong, and what both processes, supervisor and
keeper, held before and after.  "Before" is after a first hundred: by then everything is imported,
and every thread that is kept has been started.  With TRACE, the places that hold more memory than
before are told, too (tracemalloc; this makes everything slower).
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
import trio.testing

from bench._craterun_density import pss
from craterun import Container, CraterunError, Limits, Record, Spec, Store, Stream, Supervisor
from craterun.bench.leave import cancelled_on_signals
from craterun.core.errors import CommandNotFoundError
from craterun.core.restart import Condition, RestartPolicy
from craterun.linux import heap
from craterun.supervisor.link import KeeperLink

WARM_UP = 100
IDLE_SECONDS = 15.0
"""A thread of trio's ends when it had nothing to do for 10 s; a busy moment needs more of them."""
SLEEP = ("/bin/sleep", "1000000")
MEMORY = 8 * 2**20

Result = tuple[Container, dict[str, object]]
"""A container that has ended, and what has to be true of its record and its log."""


class Soak:
    """One supervisor, and what has been found out about it."""

    def __init__(self, supervisor: Supervisor, keeper: int, rootfs: str, seed: int) -> None:
        """Begin with nothing run."""
        self.supervisor = supervisor
        self.rootfs = rootfs
        self.random = random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.ids = bytearray()  # as little memory as possible: ours is what is measured
        self.keeper = keeper

    async def start(self, *command: str, **options: object) -> Container:
        """One container."""
        spec = Spec(rootfs=self.rootfs, command=command, **options)  # type: ignore[arg-type]
        container = await self.supervisor.start(spec)
        self.ids += bytes.fromhex(container.id)
        return container

    # --- the mixture ------------------------------------------------------------------------------

    async def ok(self) -> Result:
        """Says something, and ends well."""
        text = f"number {self.random.random()}"
        return await self.start("echo", text), {"exit_code": 0, "stdout": f"{text}\n".encode()}

    async def named(self) -> Result:
        """The same with a name, which is free again afterwards."""
        name = f"n{self.random.randrange(10**9)}"
        return await self.start("echo", name, name=name), {
            "exit_code": 0, "stdout": f"{name}\n".encode(), "name": name,
        }  # fmt: skip

    async def failing(self) -> Result:
        """Ends with a code of its own."""
        code = self.random.randrange(1, 125)
        script = f"echo sorry >&2; exit {code}"
        return await self.start("sh", "-c", script), {"exit_code": code, "stderr": b"sorry\n"}

    async def chatty(self) -> Result:
        """Writes more than a pipe holds to both streams."""
        out, err = (self.random.randrange(1, 300_000) for _ in range(2))
        script = f"head -c {out} /dev/zero; head -c {err} /dev/zero >&2"
        return await self.start("sh", "-c", script), {
            "exit_code": 0, "stdout": bytes(out), "stderr": bytes(err),
        }  # fmt: skip

    async def killed(self) -> Result:
        """Would sleep for ever."""
        container = await self.start(*SLEEP)
        container.send_signal(signal.SIGKILL)
        return container, {"exit_code": 137, "signal": 9, "init_oom_killed": False}

    async def child_out_of_memory(self) -> Result:
        """A child is killed for want of memory; the first process goes on."""
        script = "tail /dev/zero; echo went on; exit 3"
        container = await self.start("sh", "-c", script, limits=Limits(memory=MEMORY))
        return container, {
            "exit_code": 3, "stdout": b"went on\n", "oom_kills": 1, "init_oom_killed": False,
        }  # fmt: skip

    async def out_of_memory(self) -> Result:
        """The first process is killed for want of memory."""
        container = await self.start("tail", "/dev/zero", limits=Limits(memory=MEMORY))
        return container, {"exit_code": 137, "oom_kills": 1, "init_oom_killed": True}

    async def too_long(self) -> Result:
        """Runs into its timeout, deaf to the signal that asks it to end."""
        container = await self.start(*SLEEP, timeout=0.1, stop_seconds=0.05)
        return container, {"exit_code": 137, "timed_out": True}

    async def with_exec(self) -> Result:
        """Gets a further command."""
        container = await self.start(*SLEEP)
        code = self.random.randrange(256)
        script = f"echo from exec; exit {code}"
        execution = await self.supervisor.execute(container.id, ("sh", "-c", script))
        said = dict.fromkeys(execution.streams, b"")
        for stream in said:
            while data := await execution.receive(stream):
                said[stream] += data
        found = ((await execution.wait()).exit_code, said[Stream.STDOUT], said[Stream.STDERR])
        if found != (code, b"from exec\n", b""):
            self.wrong.append(f"exec: {found} for {code}")
        container.kill()
        return container, {"exit_code": 137}

    async def restarted(self) -> Result:
        """Fails, and is started again, twice."""
        policy = RestartPolicy(Condition.ON_FAILURE, 2)
        container = await self.start("sh", "-c", "echo again; exit 1", restart=policy)
        return container, {"exit_code": 1, "restarts": 2, "stdout": b"again\n" * 3}

    async def with_input(self) -> Result:
        """Gets input, and says it again."""
        container = await self.start("cat", interactive=True)
        os.write(container.stdin.fileno(), b"input\n")
        container.stdin.close()
        return container, {"exit_code": 0, "stdout": b"input\n"}

    async def on_terminal(self) -> Result:
        """Has a terminal."""
        container = await self.start("echo", "terminal", terminal=True)
        return container, {"exit_code": 0, "stdout": b"terminal\r\n"}

    async def followed(self) -> Result:
        """Has a reader."""
        container = await self.start("sh", "-c", "echo one; echo two")
        reader, read = container.follow(Stream.STDOUT), b""
        while data := await reader.receive():
            read += data
        reader.close()
        if read != b"one\ntwo\n":
            self.wrong.append(f"a reader got {read!r}")
        return container, {"exit_code": 0, "stdout": read}

    async def not_found(self) -> None:
        """Cannot be started at all."""
        try:
            container = await self.start("no-such-command")
        except CommandNotFoundError:
            return
        self.wrong.append(f"{container.id} was started without a command")

    # --- running and checking ---------------------------------------------------------------------

    def pick(self) -> Callable[[], Awaitable[Result | None]]:
        """A kind, at random."""
        kinds: dict[Callable[[], Awaitable[Result | None]], int] = {
            self.ok: 34, self.named: 5, self.failing: 15, self.chatty: 8, self.killed: 8,
            self.child_out_of_memory: 3, self.out_of_memory: 3, self.too_long: 4,
            self.with_exec: 6, self.restarted: 2, self.with_input: 4, self.on_terminal: 3,
            self.followed: 3, self.not_found: 2,
        }  # fmt: skip
        return self.random.choices(list(kinds), list(kinds.values()))[0]

    async def one(self) -> None:
        """A container's life, and what is left of it."""
        kind = self.pick()
        name = kind.__name__
        self.kinds[name] += 1
        try:
            result = await kind()
            if result is None:
                return
            container, expected = result
            await container.wait()
        except (CraterunError, OSError) as error:
            self.wrong.append(f"{name}: {error}")
            return
        found = read_back(self.supervisor.store, container.id, expected)
        for key, value in expected.items():
            if found[key] != value:
                seen, wanted = repr(found[key])[:80], repr(value)[:80]
                self.wrong.append(f"{name} {container.id}: {key} is {seen} and not {wanted}")
        if found["error"]:
            self.wrong.append(f"{name} {container.id}: {found['error']}")
        self.supervisor.store.remove(container.record)

    async def many(self, count: int, concurrency: int) -> None:
        """So many, so many of them at a time."""
        numbers = iter(range(count))

        async def worker() -> None:
            for _ in numbers:
                await self.one()

        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(worker)

    async def held(self, before: dict[str, int] | None = None) -> dict[str, int]:
        """What both processes hold, when nothing runs.

        :param before: of threads, wait until there are no more than these, for a while
        """
        await trio.testing.wait_all_tasks_blocked(0.1)
        if before is not None:
            with trio.move_on_after(IDLE_SECONDS):
                # The kernel tells nobody of the end of a thread.
                while len(os.listdir("/proc/self/task")) > before["supervisor threads"]:  # noqa: ASYNC110
                    await trio.sleep(0.2)
        gc.collect()
        heap.give_back()  # what is free, but kept by the C library, is no leak
        found = {}
        for who, pid in (("supervisor", os.getpid()), ("keeper", self.keeper)):
            found[f"{who} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            found[f"{who} threads"] = len(os.listdir(f"/proc/{pid}/task"))
            found[f"{who} children"] = len(children(pid))
            found[f"{who} memory"] = pss(pid)
        return found


def children(pid: int) -> list[str]:
    """Its children (proc_pid_task(5)), in all of its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def read_back(store: Store, container_id: str, expected: dict[str, object]) -> dict[str, object]:
    """The record, and the logs as far as something is expected of them."""
    record: Record = store.load(container_id)
    found: dict[str, object] = {name: getattr(record, name) for name in record.__struct_fields__}
    for name in ("stdout", "stderr"):
        if name in expected:
            found[name] = Path(store.path(container_id), f"{name}.log").read_bytes()
    return found


async def soak(
    rootfs: str, state: str, count: int, concurrency: int, seed: int, trace: bool
) -> dict[str, object]:
    """Run all; what there is to report."""
    report: dict[str, object] = {}
    link = KeeperLink.spawn()
    async with cancelled_on_signals(), Supervisor(state, link=link) as supervisor:
        run = Soak(supervisor, link.pid, rootfs, seed)
        await run.many(min(WARM_UP, count), concurrency)
        before = await run.held()
        if trace:
            tracemalloc.start(12)
            await run.many(min(WARM_UP, count), concurrency)
            gc.collect()
            first = tracemalloc.take_snapshot()
        begin = time.perf_counter()
        await run.many(count // 2, concurrency)
        halfway = await run.held(before)
        await run.many(count - count // 2, concurrency)
        seconds = time.perf_counter() - begin
        if trace:
            gc.collect()
            grown = tracemalloc.take_snapshot().compare_to(first, "traceback")
            report["grown"] = [
                [stat.size_diff, stat.count_diff, *stat.traceback.format()[-8:]]
                for stat in grown[:12]
            ]
            tracemalloc.stop()
        after = await run.held(before)
    report |= {
        "seconds": seconds, "kinds": run.kinds, "wrong": run.wrong, "before": before,
        "halfway": halfway, "after": after, "ids": run.ids.hex(" ", 8).split(),
    }  # fmt: skip
    return report


def main() -> None:
    """Read the arguments, run, print."""
    rootfs, state, count, concurrency, seed, *trace = sys.argv[1:]
    report = trio.run(soak, rootfs, state, int(count), int(concurrency), int(seed), bool(trace))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
