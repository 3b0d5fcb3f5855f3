"""How long it takes until somebody who follows the events knows of an OOM kill.

    python bench/oom.py [--kills N] [--json FILE]

One container with a memory limit starts children that take more than that, one
after the other; `craterun events --follow` waits for news of them.  From the
moment at which the kernel marks the victim to the line that the follower
prints, that is what is reported.  Needs root and tracefs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import BenchError, craterun_state, exit_on_signals, make_rootfs, tmpfs_place
from bench.peers import craterun_env

HOG = "while read line; do dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; done"
PATIENCE = 60.0
TRACING = Path("/sys/kernel/tracing")


class Victims:
    """The kernel's marks of OOM victims from now on: the tracepoint oom:mark_victim, in a trace
    instance of our own, stamped by the clock that `time.monotonic_ns` reads.

    The kernel's log would tell, too, but its line comes after a report that may go to a slow
    console first.
    """

    def __init__(self) -> None:
        """:raises BenchError: tracefs is not mounted, or not for us"""
        self._instance = TRACING / "instances" / f"craterun-bench-{os.getpid()}"
        try:
            self._instance.mkdir()
        except OSError as error:
            raise BenchError(
                f"cannot trace OOM kills: {self._instance}: {error.strerror}"
            ) from None
        try:
            (self._instance / "trace_clock").write_text("mono")
            (self._instance / "events/oom/mark_victim/enable").write_text("1")
            self._pipe = os.open(self._instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        except BaseException:
            self._instance.rmdir()
            raise
        self._text = ""

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        self._instance.rmdir()

    def next(self) -> int:
        """Wait for the next victim; when it was marked, ns of the monotonic clock."""
        while "\n" not in self._text:
            if not select.select([self._pipe], [], [], PATIENCE)[0]:
                raise BenchError(f"no OOM kill within {PATIENCE:g} s")
            with contextlib.suppress(BlockingIOError):
                self._text += os.read(self._pipe, 8192).decode(errors="replace")
        line, _, self._text = self._text.partition("\n")
        found = re.search(r"(\d+)\.(\d{6}): mark_victim:", line)
        if found is None:
            return self.next()  # such as: events were lost
        return (int(found[1]) * 1_000_000 + int(found[2])) * 1000


@contextlib.contextmanager
def follower(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Follow the OOM events of the state directory in ``env``."""
    command = [sys.executable, "-m", "craterun", "events", "--follow", "--json"]
    process = subprocess.Popen([*command, "--filter", "type=oom"], env=env, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def measure(state: Path, rootfs: Path, kills: int) -> list[float]:
    """Give the delays in milliseconds."""
    env = craterun_env() | {"CRATERUN_ROOT": str(state)}
    command = [sys.executable, "-m", "craterun", "run", "-i", "--memory", "16m", "--rm"]
    command += ["--rootfs", str(rootfs), "--", "/bin/sh", "-c", HOG]
    delays = []
    with (
        Victims() as victims,
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as box,
    ):
        assert box.stdin is not None
        assert box.stdout is not None
        box.stdout.readline()  # the id: it runs
        with follower(env) as events:
            assert events.stdout is not None
            # The first news also tells that the follower is there.
            deadline, seen = time.monotonic() + PATIENCE, False
            while not seen and time.monotonic() < deadline:
                box.stdin.write(b"go\n")
                box.stdin.flush()
                victims.next()
                seen = bool(select.select([events.stdout], [], [], 2.0)[0])
            if not seen:
                raise BenchError("no event of an OOM kill arrives")
            events.stdout.readline()
            for number in range(kills):
                if sys.stderr.isatty():
                    print(f"\r{number}/{kills} kills", end="", file=sys.stderr, flush=True)
                box.stdin.write(b"go\n")
                box.stdin.flush()
                line = events.stdout.readline()
                told = time.monotonic_ns()
                if not re.search(rb'"type": ?"oom"', line):
                    raise BenchError(f"not an event of an OOM kill: {line!r}")
                delays.append((told - victims.next()) / 1e6)
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
        box.stdin.close()
    return delays


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="from the kernel's kill to the event")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args()
    exit_on_signals()
    with tmpfs_place() as place, craterun_state(place.path) as state:
        rootfs = make_rootfs(place.path / "rootfs")
        for applet in ("dd", "sh"):
            if not (rootfs / "bin" / applet).exists():
                (rootfs / "bin" / applet).symlink_to("busybox")
        delays = measure(state, rootfs, options.kills)
    cuts = statistics.quantiles(delays, n=100)
    print(
        f"{len(delays)} OOM kills, from the kernel's kill to the line of events --follow: "
        f"median {statistics.median(delays):.2f} ms, p99 {cuts[98]:.2f} ms, "
        f"most {max(delays):.2f} ms"
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"milliseconds": delays}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
