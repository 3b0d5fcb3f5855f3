"""What the tests of streams, signals and crashes share: looking at a container from outside, and
waiting for what happens in it. Every wait is for an event; the limit only ends a test that fails.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import select
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from craterun.state.logs import FILES, Stream, read_index
from tests.conftest import cli_environment

PATIENCE_SECONDS = 60.0
LARGEST = 2**24 + 1
_READ_BYTES = 1024 * 1024
_IN_ANY_CHANGE = 0x2 | 0x40 | 0x80 | 0x100 | 0x200  # MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE
_T = TypeVar("_T")

LAUNCH_MANY = """
import sys, trio, craterun.supervisor.preparation as preparation
from craterun import Spec, Supervisor

root, rootfs, made = *sys.argv[1:], preparation.new_id
limit = trio.CapacityLimiter(16)

def new_id():
    made_id = made()
    print(made_id, flush=True)
    return made_id

async def start(supervisor, number):
    script = "echo out; read x </block" if number % 2 else "echo out"
    async with limit:
        await supervisor.start(Spec(rootfs=rootfs, command=("sh", "-c", script)))

async def run():
    async with Supervisor(root) as supervisor, trio.open_nursery() as starts:
        for number in range(100):
            starts.start_soon(start, supervisor, number)

preparation.new_id = new_id
trio.run(run)
"""
"""A program that launches a hundred containers, prints their ids before, and waits for them."""

Digest = tuple[int, str]
"""Length and hash: what is compared instead of megabytes, which no report could show."""


# --- content ------------------------------------------------------------------------------------


@cache
def noise(seed: int, size: int = LARGEST) -> bytes:
    """Pseudo-random bytes, the same for the same arguments."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes | memoryview) -> Digest:
    """Length and hash of ``data``."""
    return len(data), hashlib.sha256(data).hexdigest()


def common_prefix(one: bytes, other: bytes) -> int:
    """Length of it, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def add_noise(rootfs: Path, size: int = LARGEST) -> tuple[bytes, bytes]:
    """Put different noise into /out.bin and /err.bin of ``rootfs``. Returns both."""
    contents = noise(1, size), noise(2, size)
    for name, content in zip(("out.bin", "err.bin"), contents, strict=True):
        (rootfs / name).write_bytes(content)
    return contents


def check_log(directory: Path, out: bytes | memoryview, err: bytes | memoryview) -> None:
    """The log files hold exactly these bytes, and the index covers them without gap or overlap."""
    for stream, content in ((Stream.STDOUT, out), (Stream.STDERR, err)):
        assert digest((directory / FILES[stream]).read_bytes()) == digest(content), stream.name
    assert index_ends(directory) == {Stream.STDOUT: len(out), Stream.STDERR: len(err)}


def index_ends(directory: Path) -> dict[Stream, int]:
    """How many bytes of each stream the index covers; it must do so in order and without a gap."""
    covered = dict.fromkeys(Stream, 0)
    path = directory / "log.index"
    if path.exists():
        for entry in read_index(str(path)):
            assert entry.offset == covered[entry.stream], f"gap or overlap at {entry}"
            assert entry.length > 0
            covered[entry.stream] += entry.length
    return covered


# --- waiting ------------------------------------------------------------------------------------


def wait_readable(*fds: int) -> set[int]:
    """Until one of ``fds`` can be read: bytes, end-of-file, or of a pidfd the process's end."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(PATIENCE_SECONDS * 1000)}
    if not ready:
        pytest.fail(f"nothing came on {[os.readlink(f'/proc/self/fd/{fd}') for fd in fds]}")
    return ready


def read_until(fd: int, marker: bytes) -> bytes:
    """Read from ``fd`` until ``marker`` has come; returns everything read."""
    seen = b""
    while marker not in seen:
        wait_readable(fd)
        data = os.read(fd, 65536)
        if not data:
            pytest.fail(f"end of file before {marker!r}; there was only {seen[-2000:]!r}")
        seen += data
    return seen


def drain(*fds: int, read_bytes: int = _READ_BYTES) -> list[Digest]:
    """Read all ``fds`` to their ends, side by side; digests of what came, in their order."""
    hashes = {fd: hashlib.sha256() for fd in fds}
    sizes = dict.fromkeys(fds, 0)
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(PATIENCE_SECONDS)
            if not ready:
                pytest.fail("neither output nor its end came")
            for key, _ in ready:
                data = os.read(key.fd, read_bytes)
                hashes[key.fd].update(data)
                sizes[key.fd] += len(data)
                if not data:
                    selector.unregister(key.fd)
    return [(sizes[fd], hashes[fd].hexdigest()) for fd in fds]


def until(directory: Path, condition: Callable[[], _T], *others: int) -> _T:
    """Until ``condition`` is true, asked anew whenever something in ``directory`` changes.

    :param others: descriptors that, once readable, are a reason to ask as well
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(directory), _IN_ANY_CHANGE) >= 0
        while not (result := condition()):
            if fd in wait_readable(fd, *others):
                os.read(fd, 65536)
        return result
    finally:
        os.close(fd)


def wait_ended(pid: int) -> None:
    """Until process ``pid`` has ended; if it became our child, it is reaped."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(pidfd)
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    finally:
        os.close(pidfd)


class Gate:
    """A FIFO on both sides of a container's wall: one side waits there until the other lets it on.

    Held open for both directions here, so that neither side blocks in open(2).
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def open(self) -> None:
        """Let one ``read x </gate`` inside go on."""
        os.write(self._fd, b"\n")

    def fileno(self) -> int:
        """Readable once something inside was written to the gate."""
        return self._fd

    def wait(self) -> bytes:
        """Until something inside was written to the gate; returns that."""
        wait_readable(self._fd)
        return os.read(self._fd, 65536)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


# --- the command line in the background ---------------------------------------------------------


def command(*arguments: str) -> list[str]:
    """The command line, as the `craterun` fixture runs it."""
    return [sys.executable, "-m", "craterun", *arguments]


@contextmanager
def background(
    state_root: Path, *arguments: str, before: tuple[str, ...] = (), **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command line beside the test; it must have ended, or end on its own, at the exit.

    :param before: a command that executes ours, such as setsid
    """
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    process = subprocess.Popen(
        [*before, *command(*arguments)], env=cli_environment(state_root), **options
    )
    try:
        yield process
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


@contextmanager
def sleeper(rootfs: Path, state_root: Path, name: str = "sleeper") -> Iterator[str]:
    """A detached container that does nothing until the block ends; its id."""
    env = cli_environment(state_root)
    with Gate(rootfs / name) as gate:
        script = f"read x </{name}"
        started = subprocess.run(
            command("run", "-d", "--name", name, "--rootfs", str(rootfs), "--", "sh", "-c", script),
            env=env,
            stdout=subprocess.PIPE,
            check=True,
        )
        container_id = started.stdout.decode().strip()
        try:
            yield container_id
        finally:
            gate.open()
            subprocess.run(
                command("wait", container_id), env=env, check=True, timeout=PATIENCE_SECONDS
            )


def output_of(process: subprocess.Popen[bytes]) -> int:
    """The descriptor that a `background` process's stdout is read from."""
    assert process.stdout is not None
    return process.stdout.fileno()


def errors_of(process: subprocess.Popen[bytes]) -> int:
    """The descriptor that a `background` process's stderr is read from."""
    assert process.stderr is not None
    return process.stderr.fileno()


# --- looking at the state -----------------------------------------------------------------------


def ids(state_root: Path) -> list[str]:
    """Ids of all containers there."""
    if not state_root.is_dir():
        return []
    return [p.name for p in state_root.iterdir() if not p.name.startswith(".")]


def the_container(state_root: Path) -> Path:
    """Folder of the only container there."""
    (container_id,) = ids(state_root)
    return state_root / container_id


def metadata(directory: Path) -> dict[str, Any]:
    """metadata.json as it is now; {} if it is not there."""
    try:
        record = json.loads((directory / "metadata.json").read_bytes())
    except FileNotFoundError:
        return {}
    assert isinstance(record, dict)
    return record


def running_pid(directory: Path) -> int:
    """The pid of the container, once its record tells."""
    pid = until(directory, lambda: metadata(directory).get("pid"))
    assert isinstance(pid, int)
    return pid


def wait_stopped(state_root: Path) -> Path:
    """Until the only container there, which may have to be made yet, is on record as stopped."""
    state_root.mkdir(parents=True, exist_ok=True)
    until(state_root, lambda: ids(state_root))
    directory = the_container(state_root)
    until(directory, lambda: metadata(directory).get("status") == "stopped")
    return directory


def cgroups_of(container_id: str) -> list[str]:
    """Its cgroup directories, in whatever hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    points = [fields[1] for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    paths = [f"{point}/craterun/{container_id}" for point in points]
    return [path for path in paths if os.path.isdir(path)]


# --- looking at processes -----------------------------------------------------------------------


def stat_fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from field 3, the state, on: field N of proc(5) is element N - 3."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return stat[stat.rindex(b")") + 2 :].split()


def parent_of(pid: int) -> int:
    """Its parent's pid."""
    return int(stat_fields(pid)[1])


def children_of(pid: int) -> list[int]:
    """Pids of its children, zombies left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent, *_ = stat_fields(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in (b"Z", b"X"):
            found.append(int(name))
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return stat_fields(pid)[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def successor_of(keeper: int) -> int:
    """The supervisor that ``keeper`` has started in place of one that was killed."""
    (found,) = [
        pid
        for pid in children_of(keeper)
        if b"supervisor.takeover" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def executed_by(keeper: int) -> int:
    """The command that ``keeper`` has launched; its forked self, which made that, may linger."""
    found = []
    for pid in children_of(keeper):
        try:
            if os.readlink(f"/proc/{pid}/exe").endswith("/busybox"):
                found.append(pid)
        except FileNotFoundError:
            continue  # it has just ended
    assert len(found) == 1
    return found[0]
