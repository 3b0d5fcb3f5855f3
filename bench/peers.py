"""The contenders: how each of them runs /bin/true in a container, many times.

Each gets the same rootfs and, as far as it is able to, makes the same
namespaces and mounts.  A contender that is not installed says so through
:meth:`Contender.missing`; nobody may drop it silently.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import craterun.bench.peers as shared
from bench.ground import BenchError, craterun_state, make_rootfs, own_cgroup, session
from craterun.bench.peers import Contender, Limits, oci_config, own_name, peers, xargs

__all__ = [
    "Bench", "Contender", "Limits", "contenders", "craterun_env", "craterun_missing", "oci_config",
    "reported_seconds", "xargs",
]  # fmt: skip
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent


def _as_craterun_takes_them(limits: Limits) -> str:
    """Give the limits as `_craterun_rate.py` takes them."""
    result: dict[str, int] = {}
    if limits.memory is not None:
        result["memory"] = limits.memory
    if limits.pids is not None:
        result["pids"] = limits.pids
    if limits.cpus is not None:
        result |= {"cpu_period": 100_000, "cpu_quota": int(limits.cpus * 100_000)}
    return json.dumps(result)


@dataclass(frozen=True)
class Bench(shared.Bench):
    """A bench whose root filesystem is made for it."""

    def prepare(self) -> None:
        """Make the rootfs, and the files that are bound into it."""
        make_rootfs(self.rootfs)
        self.prepare_files()


def reported_seconds(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    """Run a program that times itself, and give the seconds in its JSON report."""
    with session(command, env=env) as process:
        said, _ = process.communicate()
    try:
        return float(json.loads(said)["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{command[0]} printed no report, but {said!r}") from error


class Floor(Contender):
    """floor.c, compiled at run time: the system calls alone."""

    name = "floor"
    program = "cc"

    def seconds(self, bench: shared.Bench, count: int, concurrency: int) -> float:
        """Compile it unless that is done already, and run it."""
        binary = bench.work / "floor"
        if not binary.exists():
            sources = [HERE / "floor.c", HERE / "floor_child.c"]
            subprocess.run(["cc", "-O2", "-Wall", "-o", binary, *sources], check=True)
        with own_cgroup(own_name(self.name)) as cgroup:
            return reported_seconds([binary, bench.rootfs, str(count), str(concurrency), cgroup])


def craterun_missing() -> str | None:
    """Say why craterun's library cannot be imported, or None."""
    script = "from craterun import Spec, Supervisor"
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=craterun_env(), capture_output=True, text=True, check=False)
    return said.stderr.strip().rpartition("\n")[2] or "import failed" if said.returncode else None


def craterun_env() -> dict[str, str]:
    """Give the environment in which Python finds the craterun of this checkout."""
    # Python may write its bytecode, as it would for anybody: the benchmark has
    # to see the start of helper processes at the price users pay for it.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(CHECKOUT)}


class Craterun(Contender):
    """craterun: one supervisor, in a process of its own, starts all containers."""

    name = "craterun"
    program = sys.executable
    limits = True

    def missing(self) -> str | None:
        """Say if the package cannot be imported."""
        return craterun_missing()

    def seconds(self, bench: shared.Bench, count: int, concurrency: int) -> float:
        """Run the loop of _craterun_rate.py in a fresh state root."""
        script = HERE / "_craterun_rate.py"
        sizes = [str(count), str(concurrency)]
        with craterun_state(bench.work) as state:
            command: list[str | Path] = [sys.executable, script, bench.rootfs, *sizes, state]
            command.append(_as_craterun_takes_them(bench.limits))
            return reported_seconds(command, craterun_env())


def contenders() -> dict[str, Contender]:
    """Give all contenders by name, in the order reports list them."""
    others = peers()
    every = (Craterun(), others["crun"], others["runc"], others["bwrap"], Floor())
    return {contender.name: contender for contender in every}
