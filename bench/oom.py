"""How long it takes until somebody who follows the events knows of an OOM kill.

    python bench/oom.py [--kills N] [--json FILE]

One container with a memory limit starts children that take more than that, one
after the other; `craterun events --follow` waits for news of them.  The kernel
notes each kill in its log with a time stamp; from there to the line that the
follower prints, that is what is reported.  Needs root and /dev/kmsg.
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


class KernelLog:
    """The kernel's log from now on, with its clock compared with ours."""

    def __init__(self) -> None:
        """Open it, and measure how far apart the two clocks are."""
        self._fd = os.open("/dev/kmsg", os.O_RDWR | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)
        mark = f"craterun bench {os.getpid()}"
        before = time.monotonic_ns()
        os.write(self._fd, f"<7>{mark}".encode())
        after = time.monotonic_ns()
        self._offset = self._wait(mark) - (before + after) // 2
        self.uncertainty = (after - before) // 2

    def _wait(self, text: str) -> int:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            select.select([self._fd], [], [], 1.0)
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                record = os.read(self._fd, 8192).decode(errors="replace")
                if text in record:
                    return int(record.split(",")[2]) * 1000
        raise BenchError(f"the kernel's log does not say {text!r}")

    def killed(self) -> int:
        """Wait for the next OOM kill; its time on our monotonic clock, ns."""
        return self._wait("Killed process") - self._offset


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


def measure(state: Path, rootfs: Path, kills: int) -> tuple[list[float], float]:
    """Give the delays in milliseconds, and how wrong the clocks can make them."""
    env = craterun_env() | {"CRATERUN_ROOT": str(state)}
    log = KernelLog()
    command = [sys.executable, "-m", "craterun", "run", "-i", "--memory", "16m", "--rm"]
    command += ["--rootfs", str(rootfs), "--", "/bin/sh", "-c", HOG]
    delays = []
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as box:
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
                log.killed()
                seen = bool(select.select([events.stdout], [], [], 2.0)[0])
            if not seen:
                raise BenchError("no event of an OOM kill arrives")
            events.stdout.readline()
            for _ in range(kills):
                box.stdin.write(b"go\n")
                box.stdin.flush()
                line = events.stdout.readline()
                told = time.monotonic_ns()
                if not re.search(rb'"type": ?"oom"', line):
                    raise BenchError(f"not an event of an OOM kill: {line!r}")
                delays.append((told - log.killed()) / 1e6)
        box.stdin.close()
    return delays, log.uncertainty / 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="from the kernel's kill to the event")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args()
    exit_on_signals()
    with tmpfs_place() as place, craterun_state(place.path) as state:
        rootfs = make_rootfs(place.path / "rootfs")
        for applet in ("dd", "sh"):
            if not (rootfs / "bin" / applet).exists():
                (rootfs / "bin" / applet).symlink_to("busybox")
        delays, uncertainty = measure(state, rootfs, options.kills)
    cuts = statistics.quantiles(delays, n=100)
    print(
        f"{len(delays)} OOM kills, from the kernel's kill to the line of events --follow: "
        f"median {statistics.median(delays):.2f} ms, p99 {cuts[98]:.2f} ms, "
        f"most {max(delays):.2f} ms (clocks: +-{uncertainty:.3f} ms)"
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"milliseconds": delays}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
