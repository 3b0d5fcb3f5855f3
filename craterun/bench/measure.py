"""craterun's own figures: starts through one supervisor in this process, and bytes into a log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec
import trio

from craterun.bench.ground import BenchError
from craterun.bench.leave import cancelled_on_signals
from craterun.bench.signals import held
from craterun.core.life import ExitStatus
from craterun.core.logoptions import LogOptions
from craterun.core.oom import final_text
from craterun.core.phases import Phases
from craterun.core.spec import Spec
from craterun.state.logs import Stream
from craterun.supervisor.container import Container
from craterun.supervisor.main import Supervisor

BLOCK = 256 * 1024


@dataclass
class Run:
    """What one run of many containers has taken.

    :ivar seconds: from the first request to the last end
    :ivar starts: of each container, microseconds from the request until it ran
    :ivar totals: likewise, until its end was on record
    :ivar phases: likewise, each phase of its life
    """

    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    phases: list[Phases] = field(default_factory=list)


def run_many(root: str, spec: Spec, count: int, jobs: int) -> Run:
    """Run ``count`` containers, ``jobs`` at a time. The supervisor's own start is not counted.

    :raises BenchError: one of them did not exit with 0
    :raises CraterunError: one of them did not start
    """
    with held():  # a signal cancels it, and must not come up in trio itself
        return trio.run(_run_many, root, spec, count, jobs)


async def _run_many(root: str, spec: Spec, count: int, jobs: int) -> Run:
    run = Run()
    numbers = iter(range(count))
    async with cancelled_on_signals(), Supervisor(root) as supervisor:
        await _one(supervisor, spec, Run())  # the keeper is up, and everything is imported

        async def worker() -> None:
            for _ in numbers:
                await _one(supervisor, spec, run)

        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(min(jobs, count)):
                nursery.start_soon(worker)
        run.seconds = time.perf_counter() - begin
    return run


async def _one(supervisor: Supervisor, spec: Spec, run: Run) -> None:
    asked = time.perf_counter_ns()
    container = await supervisor.start(spec)
    running = time.perf_counter_ns()
    await _succeed(container, spec)
    run.starts.append((running - asked) / 1000)
    run.totals.append((time.perf_counter_ns() - asked) / 1000)
    if container.record.phases_us is not None:
        run.phases.append(container.record.phases_us)


async def _succeed(container: Container, spec: Spec) -> None:
    status = await container.wait()
    if status == ExitStatus(0):
        return
    how = f"was {status}" if status.signal is not None else f"ended with {status}"
    said = f"{spec.command[0]} {how} in container {container.id}"
    record, limit = container.record, container.memory_limit
    if not record.oom_kills:
        raise BenchError(f"{said}, which is no benchmark; give a command that succeeds, after --")
    cause = final_text(record.oom_kills, limit, record.init_oom_killed)
    raise BenchError(f"{said}: {cause}" + ("; give more --memory" if limit is not None else ""))


def producer(mebibytes: int) -> tuple[str, ...]:
    """A command that writes so much, in writes so large that it is not what limits the rate."""
    return ("dd", "if=/dev/zero", f"bs={BLOCK}", f"count={(mebibytes << 20) // BLOCK}")


def log_rate(root: str, spec: Spec, mebibytes: int) -> float:
    """Bytes per second from a container's stdout into its log, its start and end included.

    :raises BenchError: the log does not have all of it
    :raises CraterunError: it did not start
    """
    with held():
        return trio.run(_log_rate, root, spec, mebibytes)


async def _log_rate(root: str, spec: Spec, mebibytes: int) -> float:
    size = mebibytes << 20
    writing = msgspec.structs.replace(
        spec, command=producer(mebibytes), log=LogOptions(max_bytes=0), limits=type(spec.limits)()
    )
    async with cancelled_on_signals(), Supervisor(root) as supervisor:
        begin = time.perf_counter()
        container = await supervisor.start(writing)
        await _succeed(container, writing)
        seconds = time.perf_counter() - begin
        log = supervisor.store.path(container.id)
    logged = (await trio.Path(log, f"{Stream.STDOUT.name.lower()}.log").stat()).st_size
    if logged != size:
        raise BenchError(f"the log has {logged} of {size} bytes")
    return size / seconds


def percentile_values(runs: list[Run]) -> dict[str, list[float]]:
    """All measurements of all runs: those of each phase, ``start`` and ``total``."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for phases in run.phases:
            for name, length in msgspec.structs.asdict(phases).items():
                if length is not None:
                    values.setdefault(name, []).append(length)
    values["start"] = [value for run in runs for value in run.starts]
    values["total"] = [value for run in runs for value in run.totals]
    return values
