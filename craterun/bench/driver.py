"""One whole benchmark: all contenders in turn, round by round, level by level."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from craterun import __version__
from craterun.bench.ground import BenchError, filesystem_of, scratch, session, settle
from craterun.bench.measure import Run, log_rate, percentile_values, producer, run_many
from craterun.bench.peers import Bench, Contender, Limits, peers
from craterun.bench.report import Level, Percentiles, Report
from craterun.bench.signals import cleaning_up
from craterun.core.errors import CraterunError
from craterun.core.spec import DEFAULT_PATH, HOST_ROOTFS, Spec
from craterun.linux import host

OURS = "craterun"
_WARM_UP = 4
_SETTLE_SECONDS = 3.0
_UNSHARED_LIMITS = "peers are given limits on memory, processes and processor time only"


@dataclass(frozen=True)
class Options:
    """What is to be measured.

    :ivar root: the state directory; the benchmark's own is made in it, to be on the same disk
    :ivar jobs: how many containers at once, in the order they are to be measured in
    :ivar compare: names of peers
    :ivar log_mebibytes: how much is written for the rate into the log; 0: it is not measured
    """

    root: str
    spec: Spec
    count: int
    rounds: int
    jobs: tuple[int, ...]
    compare: tuple[str, ...]
    log_mebibytes: int


def measure(options: Options, tell: Callable[[str], None]) -> Report:
    """Measure; it takes as long as it takes.

    :param tell: is called with a line for each run
    :raises CraterunError: craterun itself cannot run these containers
    """
    os.makedirs(options.root, mode=0o700, exist_ok=True)
    with scratch(".bench-", options.root) as work:
        return _Benchmark(options, work, tell).report()


class _Benchmark:
    def __init__(self, options: Options, work: Path, tell: Callable[[str], None]) -> None:
        self.options = options
        self.work = work
        self.tell = tell
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.field: list[Contender] = []
        self._states = 0

    def report(self) -> Report:
        options = self.options
        self._ours(_WARM_UP, 2)  # fails early, and warms the caches up
        bench = self._find_peers()
        levels = [self._level(bench, jobs) for jobs in options.jobs]
        logs = self._logs() if options.log_mebibytes else {}
        return Report(
            craterun=__version__,
            kernel=platform.release(),
            python=platform.python_version(),
            processors=len(os.sched_getaffinity(0)),
            state=options.root,
            filesystem=filesystem_of(self.work),
            rootfs=options.spec.rootfs,
            command=options.spec.command,
            limits=options.spec.limits.as_text(),
            count=options.count,
            rounds=options.rounds,
            levels=levels,
            log_bytes_per_second=logs,
            versions={peer.name: peer.version() for peer in self.field},
            missing=self.missing,
            failed=self.failed,
        )

    def _ours(self, count: int, jobs: int) -> Run:
        return run_many(self._state(), self.options.spec, count, jobs)

    def _state(self) -> str:
        """A new state directory: nobody pays for what others have left in theirs."""
        self._states += 1
        return str(self.work / f"state-{self._states}")

    # --- the peers --------------------------------------------------------------------------------

    def _find_peers(self) -> Bench | None:
        known = peers()
        for name in self.options.compare:
            if reason := known[name].missing():
                self.missing[name] = reason
                self.tell(f"{name} is missing: {reason}")
            else:
                self.field.append(known[name])
        if not self.field:
            return None
        bench = self._bench()
        for peer in self.field:
            self._theirs(peer, bench, _WARM_UP, 2)
        return bench

    def _bench(self) -> Bench:
        spec = self.options.spec
        root, binds = (Path(spec.rootfs), ()) if spec.rootfs != HOST_ROOTFS else self._host_root()
        command = spec.command
        if "/" not in command[0]:
            # They have search paths of their own; ours is what counts.
            found = (f"{place}/{command[0]}" for place in DEFAULT_PATH.split(":"))
            inside = Path("/") if binds else root
            path = next((p for p in found if os.access(inside / p[1:], os.X_OK)), command[0])
            command = (path, *command[1:])
        bench = Bench(self.work, "", self._peer_limits(), command, root, binds)
        bench.prepare_files()
        return bench

    def _host_root(self) -> tuple[Path, tuple[str, ...]]:
        """For those that have no root like ours: /usr of the host, read-only, and little else."""
        root = self.work / "host"
        for name in ("usr", "etc", "dev", "proc", "sys", "tmp", "run"):
            (root / name).mkdir(parents=True)
        binds = ["/usr"]
        for name, target in host.probe().usr_entries:
            if target:
                (root / name).symlink_to(target)
            else:
                (root / name).mkdir()
                binds.append(f"/{name}")
        for name in ("hosts", "hostname", "resolv.conf"):
            (root / "etc" / name).touch()
        return root, tuple(binds)

    def _peer_limits(self) -> Limits:
        asked = self.options.spec.limits
        memory = asked.memory if asked.memory != -1 else None
        pids = asked.pids if asked.pids != -1 else None
        cpus = None
        if asked.cpu_quota is not None and asked.cpu_quota > 0:
            cpus = asked.cpu_quota / (asked.cpu_period or 100_000)
        given = {"memory", "pids", "cpu", "cpus"}
        if set(asked.as_text()) - given:
            self.tell(_UNSHARED_LIMITS)
        return Limits(memory, pids, cpus)

    def _theirs(self, peer: Contender, bench: Bench, count: int, jobs: int) -> float | None:
        """Containers per second; None if it has failed, and then it takes no further part."""
        if peer.name in self.failed:
            return None
        try:
            return count / peer.seconds(bench, count, jobs)
        except BenchError as error:
            reason = "; ".join(dict.fromkeys(line.strip() for line in str(error).splitlines()))
            self.failed[peer.name] = reason
            self.tell(f"{peer.name} failed and is left out: {reason}")
            return None

    # --- measuring --------------------------------------------------------------------------------

    def _level(self, bench: Bench | None, jobs: int) -> Level:
        count = self.options.count
        rates: dict[str, list[float]] = {OURS: []}
        runs: list[Run] = []
        turns: list[Contender | None] = [None, *self.field]
        for number in range(self.options.rounds):
            first = number % len(turns)
            for peer in (*turns[first:], *turns[:first]):
                settle(limit=_SETTLE_SECONDS)
                if peer is None:
                    runs.append(self._ours(count, jobs))
                    name, rate = OURS, count / runs[-1].seconds
                else:
                    assert bench is not None
                    theirs = self._theirs(peer, bench, count, jobs)
                    if theirs is None:
                        continue
                    name, rate = peer.name, theirs
                rates.setdefault(name, []).append(rate)
                self.tell(f"{jobs} at once, round {number + 1}: {name} {rate:.0f}/s")
        latency = {k: Percentiles.of(v) for k, v in percentile_values(runs).items() if v}
        return Level(jobs, rates, latency)

    def _logs(self) -> dict[str, list[float]]:
        rates: dict[str, list[float]] = {}
        contenders = {OURS: self._into_log, "cat": self._into_file}
        for number in range(self.options.rounds):
            for name, run in contenders.items():
                settle(limit=_SETTLE_SECONDS)
                try:
                    rate = run(self.options.log_mebibytes)
                except CraterunError as error:  # a rootfs without dd is no reason to fail
                    self.failed["log"] = str(error)
                    self.tell(f"the rate into the log is not measured: {error}")
                    return {}
                rates.setdefault(name, []).append(rate)
                self.tell(f"log, round {number + 1}: {name} {rate / 2**20:.0f} MiB/s")
        return rates

    def _into_log(self, mebibytes: int) -> float:
        state = self._state()
        try:
            return log_rate(state, self.options.spec, mebibytes)
        finally:
            with cleaning_up():
                shutil.rmtree(state, ignore_errors=True)  # there may not be room for all rounds'

    def _into_file(self, mebibytes: int) -> float:
        programs = ("sh", "cat", producer(mebibytes)[0])
        if absent := [program for program in programs if shutil.which(program) is None]:
            raise BenchError(f"cat cannot be measured: there is no {absent[0]} in PATH")
        target = self.work / "cat.log"
        command = 'exec "$@" 2>/dev/null | cat >"$0"'
        begin = time.perf_counter()
        with session(["sh", "-c", command, str(target), *producer(mebibytes)]):
            pass  # leaving waits for it, and checks how it ended
        seconds = time.perf_counter() - begin
        size = target.stat().st_size
        target.unlink()
        return size / seconds
