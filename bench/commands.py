"""How long commands take: craterun with a server and without, beside other runtimes.

    python bench/commands.py [--rounds N] [--json FILE]

Every command is started by posix_spawn and waited for, in turn, round after round; medians and
quartiles are of wall-clock milliseconds.  runc and crun run a bundle that asks for what craterun
makes; where cgroups are hybrid, crun does in a mount namespace without the version 2 mount.  All
remove their containers, so that ps always lists one.  Needs root, and a craterun on PATH whose
interpreter is the one that counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Run as a file: the modules beside it are found, and this checkout's craterun.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ground import make_rootfs, own_cgroup
from bench.podman import podman, podman_missing
from craterun.bench.peers import V2_MOUNT, Bench, oci_config


@dataclass(frozen=True)
class Command:
    """One contender."""

    name: str
    words: Sequence[str]
    env: dict[str, str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with ExitStack() as stack:
        commands = list(contenders(stack))
        times: dict[str, list[float]] = {command.name: [] for command in commands}
        for number in range(options.rounds + 3):
            for command in commands:
                taken = once(command)
                if number >= 3:  # the first are for caches, and for workers to learn
                    times[command.name].append(taken)
    width = max(map(len, times))
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:{width}}  {middle:7.1f} ms  ({low:.1f} to {high:.1f})")
    if options.json:
        options.json.write_text(json.dumps(times))


def once(command: Command) -> float:
    """Run it; milliseconds."""
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
    begin = time.perf_counter()
    pid = os.posix_spawnp(command.words[0], list(command.words), command.env, file_actions=null)
    _, status = os.waitpid(pid, 0)
    taken = time.perf_counter() - begin
    if status:
        sys.exit(f"{command.name}: exit status {os.waitstatus_to_exitcode(status)}")
    return 1000 * taken


def contenders(stack: ExitStack) -> Iterator[Command]:
    """All that can be run here."""
    program = shutil.which("craterun")
    if program is None:
        sys.exit("craterun is not on PATH: use the virtual environment's bin/")
    work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="commands")))
    env = {**os.environ, "CRATERUN_ROOT": str(work / "state")}
    python = str(Path(program).with_name("python"))
    yield Command("python -c pass", [python, "-c", "pass"], env)
    yield Command("craterun --version", [program, "--version"], env)
    stack.enter_context(server(program, env))
    first = subprocess.run(
        [program, "run", "--", "/bin/echo"], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()
    for serve, suffix in (((), " (server)"), (("--no-serve",), "")):
        front = [program, *serve]
        yield Command(f"craterun run{suffix}", [*front, "run", "--rm", "--", "/bin/true"], env)
        yield Command(f"craterun ps{suffix}", [*front, "ps"], env)
        yield Command(f"craterun logs{suffix}", [*front, "logs", first], env)
    yield from oci_runtimes(stack, work)


@contextmanager
def server(program: str, env: dict[str, str]) -> Iterator[None]:
    """``craterun serve`` as long as the block runs."""
    with subprocess.Popen([program, "serve"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()


def oci_runtimes(stack: ExitStack, work: Path) -> Iterator[Command]:
    """runc and crun with a bundle, and podman."""
    bench = Bench(work, stack.enter_context(own_cgroup("commands")))
    bench.prepare_files()
    make_rootfs(bench.rootfs)
    hide = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c"]
    unmount, environment = f"umount -l {V2_MOUNT} && exec", dict(os.environ)
    for name in ("runc", "crun"):
        if shutil.which(name) is None:
            continue
        bundle = work / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(oci_config(bench, name)))
        words = [name, "--root", str(work / f"{name}-state"), "run", "-b", str(bundle), name]
        if name == "crun" and V2_MOUNT.is_mount():
            yield Command("unshare, sh, umount", [*hide, f"{unmount} true"], environment)
            words = [*hide, f'{unmount} "$0" "$@"', *words]
            yield Command("the same, and crun run", words, environment)
        else:
            yield Command(f"{name} run", words, environment)
    if podman_missing(work, bench.rootfs) is None:
        words = [*podman(work, "run", bench.cgroup, bench.rootfs, ["--rm"]), "/bin/true"]
        yield Command("podman run", words, environment)


if __name__ == "__main__":
    main()
