"""Tools of the container tests: a strict command line, and looking at containers from outside.

A test module that wants the fixtures says ``cli = helpers.cli``: an import of that name would be
taken for a mistake, since every test that uses it has a parameter of the same name.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from craterun.linux.host import hierarchies
from craterun.linux.proc import Mount, parse_mountinfo
from tests.conftest import cli_environment
from tests.leaks import open_descriptors, take_footprint

PATIENCE_SECONDS = 60
"""After this long without the event that a test waits for, the test has failed."""

ID = re.compile(r"[0-9a-f]{16}\Z")
DEFAULT_CAPABILITIES = sum(1 << n for n in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))
"""Numbers from <linux/capability.h>, written down here a second time on purpose."""

Finished = subprocess.CompletedProcess[bytes]
MakeRootfs = Callable[[str], Path]
SLEEP = ("sleep", "1000000")


class Live:
    """A running process of a container, seen from the host through /proc."""

    def __init__(self, pid: int, container_id: str = "") -> None:
        self.pid = pid
        self.id = container_id
        self.proc = Path(f"/proc/{pid}")

    def root(self, path: str) -> Path:
        """``path`` in the container; the last component must not be an absolute symlink."""
        return Path(f"/proc/{self.pid}/root/{path.lstrip('/')}")

    def status(self) -> dict[str, str]:
        """/proc/PID/status."""
        lines = (self.proc / "status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def namespace(self, kind: str) -> str:
        """Identity of a namespace, as in ``pid:[4026531836]``."""
        return os.readlink(self.proc / "ns" / kind)

    def mounts(self) -> list[Mount]:
        """Every mount that the process can see."""
        return parse_mountinfo((self.proc / "mountinfo").read_text())

    def mount(self, point: str) -> Mount:
        """The topmost mount at ``point``."""
        return [mount for mount in self.mounts() if mount.point == point][-1]

    def descriptors(self) -> dict[int, str]:
        """Open descriptors and what they refer to."""
        return open_descriptors(self.pid)

    def environment(self) -> dict[str, str]:
        """What it was executed with."""
        entries = (self.proc / "environ").read_bytes().decode().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def siblings(self) -> list[Live]:
        """All processes of the same pid namespace, this one included, by their pid inside."""
        mine = self.namespace("pid")
        found = {}
        for pid in take_footprint().processes:
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") == mine:
                    found[Live(pid).pid_inside()] = Live(pid, self.id)
            except OSError:
                continue  # it ends meanwhile
        return [found[pid_inside] for pid_inside in sorted(found)]

    def pid_inside(self) -> int:
        """Its pid in its own pid namespace."""
        return int(self.status()["NSpid"].split()[-1])

    def cgroups(self) -> list[Path]:
        """Its directory in each hierarchy that has one for it alone."""
        return cgroup_directories(self.pid, self.id)


def cgroup_directories(pid: int, container_id: str) -> list[Path]:
    """Where ``pid`` is, in every hierarchy in which that is a directory of this container."""
    mounts = hierarchies(parse_mountinfo(Path("/proc/self/mountinfo").read_text()))
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for hierarchy in mounts:
            ours = "" if hierarchy.version == 2 else ",".join(hierarchy.controllers)
            if controllers == ours and container_id in path:
                found.append(Path(hierarchy.mountpoint + path))
    return found


class Cli:
    """The command line on a state directory of its own. No call of it may show a traceback."""

    def __init__(self, state_root: Path, prefix: Sequence[str] = ()) -> None:
        """:param prefix: command in front, such as nsenter or setpriv with their options"""
        self.state_root = state_root
        self._prefix = tuple(prefix)
        self._started: list[subprocess.Popen[bytes]] = []

    def behind(self, *prefix: str) -> Cli:
        """The same, started through another command."""
        other = Cli(self.state_root, prefix)
        other._started = self._started
        return other

    def command(self, *arguments: str | bytes) -> list[str | bytes]:
        """The whole argument vector."""
        return [*self._prefix, sys.executable, "-m", "craterun", *arguments]

    def __call__(
        self,
        *arguments: str | bytes,
        env: dict[str, str] | None = None,
        stdin: bytes | None = None,
        cwd: Path | str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Finished:
        """Run to the end."""
        finished = subprocess.run(
            self.command(*arguments),
            env=cli_environment(self.state_root, env),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=2 * PATIENCE_SECONDS,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            check=False,
        )
        assert b"Traceback" not in finished.stderr, finished.stderr.decode()
        return finished

    def ok(self, *arguments: str | bytes, env: dict[str, str] | None = None) -> str:
        """Run what must succeed in silence; its stdout."""
        finished = self(*arguments, env=env)
        assert (finished.returncode, finished.stderr) == (0, b""), finished
        return finished.stdout.decode()

    def refused(
        self,
        *arguments: str | bytes,
        code: int = 125,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> str:
        """Run what must be refused with one clear line on stderr; that line."""
        finished = self(*arguments, env=env, cwd=cwd)
        return the_complaint(finished, code)

    def start(
        self,
        *arguments: str | bytes,
        pass_fds: Sequence[int] = (),
        stdin: int | None = None,
        process_group: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start in the background; killed and reaped when the test is over.

        :param process_group: 0: one of its own, as a shell's job has
        """
        process = subprocess.Popen(
            self.command(*arguments),
            env=cli_environment(self.state_root, None),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            process_group=process_group,
        )
        self._started.append(process)
        return process

    def detach(self, *arguments: str | bytes, pass_fds: Sequence[int] = ()) -> Live:
        """``run --detach``; the container is removed when the test is over."""
        finished = self("run", "--detach", *arguments, pass_fds=pass_fds)
        assert (finished.returncode, finished.stderr) == (0, b""), finished
        first = self.live(finished.stdout.decode().strip())
        assert self.record(first.id)["pid"] == first.pid
        return first

    def live(self, container_id: str) -> Live:
        """The first process of a running container, found without asking craterun for its pid."""
        found = []
        for pid in take_footprint().processes:
            process = Live(pid, container_id)
            try:
                ours = container_id in (process.proc / "cgroup").read_text()
                if ours and process.status()["NSpid"].split()[1:] == ["1"]:
                    found.append(process)
            except OSError:
                continue  # it has just ended
        assert len(found) == 1, found
        return found[0]

    def ids(self) -> set[str]:
        """Containers that have a folder, by looking at the disk."""
        if not self.state_root.is_dir():
            return set()
        return {name for name in os.listdir(self.state_root) if ID.match(name)}

    def metadata(self, container_id: str) -> Path:
        """The file, for a test to read or to damage."""
        return self.state_root / container_id / "metadata.json"

    def record(self, container_id: str) -> dict[str, object]:
        """The content of metadata.json."""
        content = json.loads(self.metadata(container_id).read_text())
        assert isinstance(content, dict)
        return content

    def log(self, container_id: str, stream: str = "stdout") -> bytes:
        """Bytes in the log file."""
        return (self.state_root / container_id / f"{stream}.log").read_bytes()

    def close(self) -> None:
        """End what this test has started: first containers, whose command lines then end too."""
        if take_footprint().processes and self.ids():
            self("rm", "--force", *self.ids())
        for process in self._started:
            with process:
                if process.poll() is None:
                    process.kill()


def detach_obliging(cli: Cli, *options: str) -> Live:
    """A container that heeds SIGTERM already: it says bye and ends with code 5."""
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    live = cli.detach(*options, "--", "sh", "-c", script)
    log = cli.start("--no-serve", "logs", "--follow", live.id)
    assert read_line(log) == "ready"
    log.kill()
    log.wait(PATIENCE_SECONDS)
    return live


def the_complaint(finished: Finished, code: int) -> str:
    """Check that ``finished`` was refused with exactly one printable line, and return it."""
    assert finished.returncode == code, finished
    assert finished.stdout == b"", finished
    text = finished.stderr.decode()
    assert text.startswith("craterun: "), text
    assert text.endswith("\n"), text
    assert text[:-1].isprintable(), text
    return text[len("craterun: ") : -1]


@pytest.fixture
def cli(state_root: Path) -> Iterator[Cli]:
    """The command line, and the end of everything that was started with it."""
    command_line = Cli(state_root)
    yield command_line
    command_line.close()


class Gate:
    """A FIFO in a rootfs: a container and a test wait there for each other, not for a clock."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def wait(self) -> bytes:
        """Until the container writes; what it wrote."""
        return read_some(self._fd)

    def wait_for(self, lines: int) -> None:
        """Until containers have written so many lines, since the last time."""
        seen = b""
        while seen.count(b"\n") < lines:
            seen += self.wait()

    def open(self) -> None:
        """Let the container's ``read`` return."""
        os.write(self._fd, b"go\n")

    def close(self) -> None:
        """Close our end."""
        os.close(self._fd)


@pytest.fixture
def make_gate() -> Iterator[Callable[[Path], Gate]]:
    """Makes gates that are closed when the test is over."""
    gates: list[Gate] = []

    def make(path: Path) -> Gate:
        gates.append(Gate(path))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


def read_some(fd: int) -> bytes:
    """What comes next on ``fd``; b"" at its end. Fails if nothing does for a long time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(PATIENCE_SECONDS * 1000):
        pytest.fail(f"nothing came on {os.readlink(f'/proc/self/fd/{fd}')}")
    return os.read(fd, 65536)


def read_all(fd: int) -> bytes:
    """All that is still to come on ``fd``."""
    seen = b""
    while data := read_some(fd):
        seen += data
    return seen


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line on a process's stdout."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = read_some(process.stdout.fileno())
        assert data, f"stdout ended after {line!r}"
        line += data
    return line.decode().rstrip("\n")


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines that it writes, as they come."""
    assert process.stdout is not None
    rest = b""
    while data := read_some(process.stdout.fileno()):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode() for line in lines)


def wait_exit(pid: int) -> None:
    """Until process ``pid`` has ended, whoever its parent is."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(PATIENCE_SECONDS * 1000)
    os.close(pidfd)
    assert ended, f"process {pid} does not end"


class Aside(NamedTuple):
    """A mount namespace apart from the host's.

    :ivar enter: command to put in front of one that shall run there
    :ivar root: its root directory, for looking in from outside
    """

    enter: tuple[str, ...]
    root: Path

    def path(self, path: Path) -> Path:
        """``path`` as it is there, for this process."""
        return self.root / str(path).lstrip("/")


def wait_reaped(pid: int) -> None:
    """Until the zombie of process ``pid`` has been reaped by its parent, which tells nobody."""
    wait_exit(pid)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} stays a zombie"
        os.sched_yield()


@contextmanager
def mount_namespace(script: str, *arguments: str | Path) -> Iterator[Aside]:
    """A private mount namespace, prepared by a shell ``script`` with ``arguments``.

    The host's mounts stay as they are, and the namespace goes away with all that was mounted in it.
    """
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc",
         f"{script}\necho ready; exec cat", "sh", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:  # leaving it closes the pipe, which ends the holder
        line = read_line(holder)
        assert line == "ready", line
        enter = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")
        yield Aside(enter, Path(f"/proc/{holder.pid}/root"))


def run_python(code: str, *arguments: str | Path, prefix: Sequence[str] = ()) -> object:
    """Run a program that uses craterun as a library, in a process of its own.

    Its stdout is one JSON document, which is returned.
    """
    finished = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, b""), finished.stderr.decode()
    return json.loads(finished.stdout)
