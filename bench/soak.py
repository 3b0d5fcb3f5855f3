"""Twenty thousand containers through one supervisor: is everything what it was, and all right?

    python bench/soak.py [--through {library,serve}] [--count N] [--concurrency N] [--seed S]
                         [--shared] [--trace] [--json FILE]

Through the library, a mixture of containers (bench/_craterun_soak.py) that end well, fail, are
killed, run out of memory, into their timeout, write much, are restarted, get input, a terminal, a
reader or a further command, or cannot be started.  Through one server (`craterun serve`), another
mixture, with clients of the command line (bench/_craterun_soak_serve.py), of which some are killed,
too; in the end `craterun shutdown`.  Every result is checked.  At the end descriptors, threads and
children of supervisor, keeper and spawner must be what they were after the first hundred, their
memory (PSS; RssAnon with a server) about what it was after half of all, and on the host no process,
mount, cgroup, network namespace or file may be left.  Nobody can have a server give back what its
allocator keeps, as is done with the library before its memory is looked at; the tolerance is the
same.
Exits with 1 if anything differs.  Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import (
    BenchError,
    exit_on_signals,
    fresh,
    make_rootfs,
    session,
    tmpfs_place,
)
from bench.peers import HERE, craterun_env
from bench.soakserve import served_soak
from craterun.bench.ground import hierarchies

MEMORY_BYTES = 4 * 2**20
"""By so much each may have grown in the second half: allocators keep what a peak has taken, and
CPython's takes 1 MiB at a time. Of 20,000, it is 400 bytes for each of the second half.
"""
_KEPT = ((".names",), (".trash",), (".removed",), (".removed.old",))
"""In a state directory without containers; the last two never get large."""
_COMMANDS = ("sleep", "tail")
"""Of containers, those that would stay."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="many containers through one supervisor")
    parser.add_argument("--through", choices=("library", "serve"), default="library")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--shared",
        action="store_true",
        help="other containers run on this host: look only at what is certainly ours",
    )
    parser.add_argument("--trace", action="store_true", help="tell what holds memory (slow)")
    parser.add_argument("--json", type=Path, help="write the whole report to this file")
    options = parser.parse_args(arguments)
    if options.trace and options.through == "serve":
        parser.error("--trace looks into the library, not into a server")
    return options


def look(place: Path, *, shared: bool) -> dict[str, set[str]]:
    """What is on this host of the kinds that containers are made of."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if shared:
        return {"mounts": {line for line in mounts if str(place) in line}}
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return {
        "mounts": set(mounts),
        "network namespaces": set(_links(f"/proc/{pid}/ns/net" for pid in pids)),
        "cgroups": {str(path) for top in hierarchies() for path in (top / "craterun").glob("*")},
        "processes": {
            pid for pid in pids if _comm(pid).startswith("craterun") or _comm(pid) in _COMMANDS
        },
    }


def _links(paths: Iterable[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            found.append(os.readlink(path))
        except OSError:
            continue  # it has just ended
    return found


def _comm(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def differences(report: dict[str, dict[str, int]]) -> list[str]:
    """What the two processes hold now and did not before, one line each."""
    lines = []
    for what, before in report["before"].items():
        after, allowed = report["after"][what], 0
        if what.endswith("memory"):
            before, allowed = report["halfway"][what], MEMORY_BYTES  # noqa: PLW2901
        if after - before > allowed:
            lines.append(f"{what}: {before} before, {after} after")
    return lines


def left_on_host(ids: Iterable[str], state: Path) -> list[str]:
    """Cgroups and files of containers that are all removed."""
    lines = []
    for top in hierarchies():
        present = {path.name for path in (top / "craterun").glob("*")}
        lines += [f"cgroup: {top}/craterun/{name}" for name in sorted(present & set(ids))]
    for path in sorted(state.rglob("*")):
        parts = path.relative_to(state).parts
        if parts[0] != ".events" and parts not in _KEPT:
            lines.append(f"file: {path}")
    return lines


def soak_through_library(rootfs: Path, state: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What bench/_craterun_soak.py reports."""
    command: list[str | Path] = [sys.executable, HERE / "_craterun_soak.py", rootfs, state]
    command += [str(options.count), str(options.concurrency), str(options.seed)]
    command += ["trace"] if options.trace else []
    with session(command, env=craterun_env()) as process:
        said, _ = process.communicate()
    if process.returncode:
        raise BenchError(f"the supervisor has ended with {process.returncode}")
    report: dict[str, Any] = json.loads(said)
    return report


def main() -> int:
    """Run, and print what was found."""
    options = parse()
    exit_on_signals()
    if os.geteuid() != 0:
        raise SystemExit("the soak needs root")
    with tmpfs_place() as place:
        rootfs = make_rootfs(place.path / "rootfs")
        (rootfs / "bin/tail").symlink_to("busybox")
        state = fresh(place.path, "craterun")
        before = look(place.path, shared=options.shared)
        if options.through == "serve":
            sizes = (options.count, options.concurrency, options.seed)
            report = served_soak(rootfs, state, *sizes)
        else:
            report = soak_through_library(rootfs, state, options)
        after = look(place.path, shared=options.shared)
        wrong = report["wrong"] + differences(report) + left_on_host(report["ids"], state)
        for kind, present in after.items():
            wrong += [f"{kind}: {what}" for what in sorted(present - before[kind])]
    seconds = report["seconds"]
    print(f"{options.count} in {seconds:.0f} s, {options.count / seconds:.0f}/s")
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(report["kinds"].items())))
    for what, number in report["before"].items():
        halfway, end = report["halfway"][what], report["after"][what]
        print(f"  {what:24} {number:>10} before {halfway:>10} halfway {end:>10} after")
    for size, count, *lines in report.get("grown", ()):
        print(f"  {size} bytes more in {count} more blocks:", *lines, sep="\n    ")
    print("\n".join(f"WRONG {line}" for line in wrong[:50]) or "nothing is different")
    if options.json is not None:
        options.json.write_text(json.dumps(report) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
