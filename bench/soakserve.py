"""`bench/soak.py --through serve`: the same question of a server and its clients.

A server (`craterun serve`) with a state directory of its own, and a process of clients
(bench/_craterun_soak_serve.py) that forks one for each command.  Compared are server, keeper and
spawner; workers come and go with the commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench._craterun_density import memory_figure
from bench._craterun_soak import children
from bench.ground import BenchError, session
from bench.peers import HERE, craterun_env

SETTLE_SECONDS = 20.0
"""Workers that were just ordered are forked, and threads of trio's that idle end, within this."""
_LOOK_SECONDS = 0.2
_PARTS = {"craterun-keeper": "keeper", "craterun-spawn": "spawner"}


class Served:
    """A server that runs.

    :ivar socket: where
    """

    def __init__(self, process: subprocess.Popen[bytes], socket: str, state: Path) -> None:
        """All of it is borrowed."""
        self.process = process
        self.socket = socket
        self.state = state

    def parts(self) -> dict[str, int]:
        """The pids of its processes that stay, by name."""
        found = {"server": self.process.pid}
        for pid in map(int, children(self.process.pid)):
            name = _PARTS.get(Path(f"/proc/{pid}/comm").read_text().rstrip("\n"))
            if name is not None:
                found[name] = pid
        return found

    def held(self) -> dict[str, int]:
        """What they have at the moment."""
        found = {}
        for who, pid in self.parts().items():
            found[f"{who} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            found[f"{who} threads"] = len(os.listdir(f"/proc/{pid}/task"))
            found[f"{who} children"] = len(children(pid))
            found[f"{who} memory"] = anonymous(pid)
        return found

    def held_at_rest(self, before: dict[str, int] | None = None) -> dict[str, int]:
        """What they have when nothing has changed for a moment.

        :param before: by which more than that is waited to go away, for a while
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        found = self.held()
        while time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            last, found = found, self.held()
            if _counts(found) != _counts(last) or len(self.parts()) != len(_PARTS) + 1:
                continue
            if before is None or all(n <= before[what] for what, n in _counts(found).items()):
                break
        return found

    def shut_down(self) -> list[str]:
        """End it; what is wrong about its end."""
        pids = [self.process.pid, *map(int, _descendants(self.process.pid))]
        began = {pid: _start_time(pid) for pid in pids}
        command = [sys.executable, "-m", "craterun", "--socket", self.socket, "shutdown"]
        finished = subprocess.run(command, env=craterun_env(), capture_output=True, check=False)
        _, said = self.process.communicate(timeout=SETTLE_SECONDS)
        wrong = [
            f"{what} has ended with {code}: {text.decode(errors='replace')}"
            for what, code, text in (
                ("craterun shutdown", finished.returncode, finished.stderr),
                ("the server", self.process.returncode, said),
            )
            if code or text
        ]
        # Workers die of the spawner's end, which is before the server's, but take their time.
        deadline = time.monotonic() + SETTLE_SECONDS
        while left := [str(n) for n in pids if began[n] and _start_time(n) == began[n]]:
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        if left:
            wrong.append(f"processes of the server are left: {' '.join(left)}")
        if os.path.exists(self.socket):
            wrong.append(f"file: {self.socket}")
        return wrong


def anonymous(pid: int) -> int:
    """A process's own memory, in bytes (RssAnon, proc_pid_status(5)).

    Not its proportional share (PSS): server, spawner and workers have had pages in common since
    their forks, and whenever one of them writes to such a page, the others' shares grow.
    """
    return memory_figure(f"/proc/{pid}/status", "RssAnon")


def _counts(held: dict[str, int]) -> dict[str, int]:
    return {what: number for what, number in held.items() if not what.endswith("memory")}


def _descendants(pid: int) -> list[str]:
    found = children(pid)
    return found + [pid for child in found for pid in _descendants(int(child))]


def _start_time(pid: int) -> str:
    """What makes a pid unique (field 22 of proc_pid_stat(5)); "" if it has ended.

    Then it may still be there for whoever has become its parent, and that is not our business.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@contextmanager
def serving(state: Path, socket: str) -> Iterator[Served]:
    """A server for ``state`` that listens at ``socket``, as long as the block runs."""
    command = [sys.executable, "-m", "craterun", "--root", str(state), "--socket", socket, "serve"]
    process = subprocess.Popen(
        command,
        env=craterun_env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            if not line.startswith("craterun serves at "):
                raise BenchError(f"the server does not begin: {process.communicate()[1]!r}")
            yield Served(process, socket, state)
        finally:
            if process.poll() is None:
                process.terminate()


def served_soak(
    rootfs: Path, state: Path, count: int, concurrency: int, seed: int
) -> dict[str, Any]:
    """Run all through a server of its own; what there is to report."""
    measured: dict[str, dict[str, int]] = {}
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="craterun-soak-") as here:
        socket = os.path.join(here, "socket")
        files = Path(here, "files")
        files.mkdir()
        with serving(state, socket) as server:
            script = HERE / "_craterun_soak_serve.py"
            command: list[str | Path] = [sys.executable, script, socket, state, rootfs, files]
            command += map(str, (count, concurrency, seed))
            with session(command, env=craterun_env()) as clients:
                assert clients.stdout is not None
                assert clients.stdin is not None
                for line in clients.stdout:
                    word, _, what = line.rstrip("\n").partition(" ")
                    if word == "MEASURE":
                        measured[what] = server.held_at_rest(measured.get("before"))
                        clients.stdin.write("\n")
                        clients.stdin.flush()
                    elif line.startswith("{"):
                        report = json.loads(line)
                    else:
                        print(line, end="", flush=True)
            report["wrong"] += server.shut_down()
        for path in files.iterdir():
            report["wrong"].append(f"file: {path.name}")
    return report | measured
