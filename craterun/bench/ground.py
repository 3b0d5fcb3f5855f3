"""What benchmarks stand on: cgroups of their own, commands in sessions, an idle machine.

Everything made here is undone when its context manager is left, also on an error and (after
`signals.exit_on_signals`) on a signal. Each clean-up gives up after a while.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from craterun.bench.signals import cleaning_up, held, leave_if_told
from craterun.core.errors import CraterunError

CGROUP_ROOT = Path("/sys/fs/cgroup")


class BenchError(CraterunError):
    """A contender or a precondition failed; the message says which and how."""


def filesystem_of(path: Path) -> str:
    """Give the type of the filesystem that path lies on."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown filesystem"


def hierarchies() -> list[Path]:
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return [CGROUP_ROOT]
    return [path for path in CGROUP_ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def _processes(group: Path) -> list[int]:
    try:
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        # 0 stands for a process outside our pid namespace, and to kill(2) for us all.
        return [pid for pid in pids if pid > 0]
    except OSError:
        return []


def remove_trees(groups: Sequence[Path]) -> None:
    # Killed processes take their time to go, and may have made one more cgroup
    # meanwhile: everything is looked at anew until nothing is left.
    deadline = time.monotonic() + 15
    while left := [group for group in groups if group.exists()]:
        if time.monotonic() > deadline:
            names = ", ".join(f"{group} (processes {_processes(group)})" for group in left)
            raise BenchError(f"cgroups cannot be removed: {names}")
        for group in left:
            # Innermost first: a cgroup with children cannot be removed.
            for path, _, _ in os.walk(group, topdown=False):
                for pid in _processes(Path(path)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        time.sleep(0.01)


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[str]:
    """Reserve a cgroup name; at the end kill and remove all there is below it.

    The contenders create the cgroups themselves, in the hierarchies they use.
    """
    if any((hierarchy / name).exists() for hierarchy in hierarchies()):
        raise BenchError(f"there is a cgroup {name} already")
    try:
        yield name
    finally:
        with cleaning_up():
            remove_trees([hierarchy / name for hierarchy in hierarchies()])


@contextlib.contextmanager
def scratch(prefix: str, place: str) -> Iterator[Path]:
    """Make a directory that is removed at the end, whatever is still being
    written there: podman cleans up in processes that outlive it."""
    path: Path | None = None
    try:
        with held():
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        yield path
    finally:
        with cleaning_up():
            if path is not None:
                _remove(path)


def _remove(path: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"{path} cannot be removed: {error}") from error
            time.sleep(0.1)


def fresh(work: Path, name: str) -> Path:
    """Make a new directory for one run in a work directory."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))


@contextlib.contextmanager
def session(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a session of its own, with piped stdin and stdout.

    Leaving the context checks its exit status; on an error in the context the
    whole session is ended.  What it wrote to stderr is part of the complaint.
    """
    with tempfile.TemporaryFile() as complaints:
        process: subprocess.Popen[str] | None = None
        try:
            with held():  # or it would run on, unknown
                process = _spawn(command, env, complaints)
            yield process
            status = process.wait()
        finally:
            with cleaning_up():
                if process is not None:
                    _finish(process)
        if status != 0:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").strip().splitlines()
            detail = "\n  ".join(["", *lines[-15:]])
            raise BenchError(f"{Path(command[0]).name} ended with status {status}{detail}")


def _spawn(
    command: Sequence[str | Path], env: Mapping[str, str] | None, complaints: IO[bytes]
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=env,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise BenchError(f"{command[0]} cannot be run: {reason}") from error


def _finish(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        _end(process)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _end(process: subprocess.Popen[str]) -> None:
    # SIGTERM first: contenders remove their own cgroups and containers on it.
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process.pid, look) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # A half-made container is the init of its pid namespace, and deaf to
    # SIGTERM.  The leader is not reaped before, so that the number is still its.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def settle(idle: float = 0.9, limit: float = 10.0) -> None:
    """Wait until the machine is idle, or for at most limit seconds.

    The kernel takes network namespaces down after their container has ended;
    without a pause one contender would pay for what the one before it left.
    """

    def sample() -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)

    leave_if_told()  # one came up where nobody could take it
    deadline = time.monotonic() + limit
    before = sample()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        after = sample()
        if after[0] - before[0] >= idle * (after[1] - before[1]):
            return
        before = after
