"""What a batch owes to the server that its containers are of, and what that owes to others."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.batch_helpers import as_lines, by_line, kill_batch, results_of, sh
from tests.containers.helpers import Cli, Gate, read_all, read_line, wait_exit
from tests.containers.streams_helpers import children_of, parent_of, until
from tests.serving import Server

pytestmark = pytest.mark.no_server
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]
SETTLED_KIB = 1024
"""What an allocator may keep of memory that is not in use, or count differently."""


@pytest.fixture
def cli(state_root: Path, server: Server) -> Iterator[Cli]:
    del server
    command_line = Cli(state_root)
    yield command_line
    command_line.close()


class Begun:
    """A batch with files whose only container runs and waits for a gate."""

    def __init__(self, cli: Cli, rootfs: Path, tmp_path: Path, make_gate: MakeGate) -> None:
        self.gate = make_gate(rootfs / "gate")
        up = make_gate(rootfs / "up")
        self.output = tmp_path / "results"
        self._input = tmp_path / "jobs"
        script = "trap 'echo bye; exit 4' TERM; echo >/up; read x </gate; echo through"
        jobs = [sh(script, key="a"), sh("echo second", key="b")]
        self._input.write_bytes(as_lines(jobs))
        self._rootfs = rootfs
        self._cli = cli
        self.process = self.start()
        up.wait()
        self.pid = self.container().pid

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """The batch, or what goes on with it."""
        return self._cli.start(
            "batch", str(self._input), "--output", str(self.output), "--rootfs", str(self._rootfs),
            "--jobs", "1", "--capture", "1k", *options,
        )  # fmt: skip

    def container(self) -> helpers.Live:
        """The only one."""
        (container_id,) = self._cli.ids()
        return self._cli.live(container_id)

    def go_on(self) -> list[tuple[object, ...]]:
        """Open the gate, resume; key, failure, output and adoption of all results there are."""
        self.gate.open()
        process = self.start("--resume")
        _, said = process.communicate(timeout=helpers.PATIENCE_SECONDS)
        assert process.returncode == 0, said
        assert sorted(self.output.parent.glob("results*")) == [self.output]
        results = results_of(self.output.read_bytes())
        return [(r["key"], r["failure"], r["stdout"], r["adopted"]) for r in results]


@pytest.fixture
def begun(cli: Cli, rootfs: Path, tmp_path: Path, make_gate: MakeGate) -> Begun:
    return Begun(cli, rootfs, tmp_path, make_gate)


def test_its_containers_are_the_servers_own(server: Server, begun: Begun) -> None:
    assert parent_of(begun.pid) == server.children()["craterun-keeper"]
    assert children_of(server.busy_worker()) == []
    begun.gate.open()
    assert begun.process.wait() == 0


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM"])
def test_the_end_of_the_server_ends_it_in_order(
    cli: Cli, server: Server, begun: Begun, how: str
) -> None:
    if how == "shutdown":
        cli.ok("shutdown")
        assert server.wait() == (0, b"")
    else:
        assert server.end() == (0, b"")
    _, said = begun.process.communicate(timeout=helpers.PATIENCE_SECONDS)
    summary, complaint = said.decode().splitlines()
    assert begun.process.returncode == 125
    assert "1 job: 0 succeeded, 0 failed, 1 cancelled" in summary
    assert complaint == (
        "craterun: the server, whose containers they were, was shut down before the end; "
        "go on with --resume"
    )
    # It was asked to end once, and what was not begun has no result.
    assert begun.go_on() == [
        ("a", "cancelled", "bye\n", False), ("a", None, "through\n", False),
        ("b", None, "second\n", False),
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["leave running", "SIGKILL"])
def test_what_a_server_leaves_running_is_waited_for(
    cli: Cli, server: Server, begun: Begun, how: str
) -> None:
    worker = server.busy_worker()
    if how == "SIGKILL":
        server.process.kill()
        server.wait()
    else:
        cli.ok("shutdown", "--leave-running")
        assert server.wait() == (0, b"")
    _, said = begun.process.communicate(timeout=helpers.PATIENCE_SECONDS)
    assert (begun.process.returncode, said.count(b"\n")) == (125, 1)
    assert b"the server " in said
    assert b"; containers that it ran live on: see craterun ps" in said
    wait_exit(worker)
    assert begun.container().pid == begun.pid
    assert begun.go_on() == [("a", None, "through\n", True), ("b", None, "second\n", False)]


@pytest.mark.parametrize("whom", ["client", "worker"])
def test_killed_it_leaves_its_containers_to_the_server(
    cli: Cli, server: Server, begun: Begun, whom: str
) -> None:
    if whom == "client":
        kill_batch(begun.process, server)
    else:
        os.kill(server.busy_worker(), signal.SIGKILL)
        assert begun.process.wait() == -signal.SIGKILL
    assert begun.container().pid == begun.pid
    assert begun.go_on() == [("a", None, "through\n", True), ("b", None, "second\n", False)]
    assert cli.ok("run", "--attach", "--", "echo", "hello") == "hello\n"


def test_the_reader_of_its_results_holds_up_nobody_else(
    cli: Cli, server: Server, rootfs: Path, tmp_path: Path
) -> None:
    read, write = os.pipe()
    padding = b" " * fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    os.write(write, padding)  # there is no room for even one result
    ran = rootfs / "tmp"
    (tmp_path / "jobs").write_bytes(as_lines(sh(f"echo >/tmp/{n}") for n in range(4)))
    arguments = ("batch", str(tmp_path / "jobs"), "--rootfs", str(rootfs), "--jobs", "2", "-q")
    process = subprocess.Popen(
        cli.command(*arguments),
        env={**os.environ, "CRATERUN_ROOT": str(cli.state_root)},
        stdout=write,
    )
    with process:
        os.close(write)
        until(ran, lambda: len(os.listdir(ran)) == 2)
        assert cli.ok("run", "--attach", "--", "echo", "hello") == "hello\n"
        other = cli("batch", "-", "--rootfs", str(rootfs), "-q", stdin=as_lines([sh("exit 3")]))
        assert [r["exit_code"] for r in by_line(other.stdout)] == [3]
        seen = read_all(read)
    os.close(read)
    assert process.returncode == 0
    assert len(results_of(seen[len(padding) :])) == 4


def test_hostile_lines_are_its_own_affair(cli: Cli, server: Server, rootfs: Path) -> None:
    """They are read, and where they are too much refused, in its own process."""
    live = cli.detach("--", *helpers.SLEEP)
    cli("batch", "-", "-q", stdin=as_lines([sh("true")]))  # whatever the first one leaves for good
    before = resident_kib(server)
    long = ["x" * 100_000]
    jobs = [
        b"[" * 15_000_000,
        {"command": ["true", *long * 150]},
        {"command": ["true"], "env": dict.fromkeys(map(str, range(150)), long[0])},
        {"command": ["true"], "workdir": f"/{'x' * 10_000_000}"},
        {"command": ["true"], "rootfs": f"/{'x' * 3_000_000}"},
        {"command": ["true"], "hostname": "x" * 15_000_000},
        sh("echo fine"),
    ]
    options = ("--rootfs", str(rootfs), "--quiet", "--jobs", "4", "--capture", "10")
    served = by_line(cli("batch", "-", *options, stdin=as_lines(jobs)).stdout)
    assert resident_kib(server) - before < 40 * SETTLED_KIB
    alone = by_line(cli("--no-serve", "batch", "-", *options, stdin=as_lines(jobs)).stdout)
    for one, other in zip(served, alone, strict=True):
        assert (one["failure"], one["attempts"]) == (other["failure"], other["attempts"])
    assert [r["failure"] for r in served] == [
        "invalid", "refused", "refused", "refused", "refused", "invalid", None,
    ]  # fmt: skip
    assert served[-1]["stdout"] == "fine\n"
    assert cli.live(live.id).pid == live.pid


def resident_kib(server: Server) -> int:
    """Memory of the server's own process, without that of files."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1])


def test_the_server_keeps_nothing_of_thousands_of_jobs(
    cli: Cli, server: Server, rootfs: Path, tmp_path: Path
) -> None:
    def run(count: int) -> None:
        lines = (sh("echo out", key=f"a key of its own: {n}", stdin="text") for n in range(count))
        (tmp_path / "jobs").write_bytes(as_lines(lines))
        options = ("--jobs", "4", "--rm", "--capture", "4k", "--log-driver", "none", "--quiet")
        finished = cli("batch", str(tmp_path / "jobs"), "--rootfs", str(rootfs), *options)
        results = by_line(finished.stdout)
        assert (finished.returncode, len(results)) == (0, count)
        assert {r["stdout"] for r in results} == {"out\n"}

    run(200)
    before = resident_kib(server), len(server.descriptors())
    run(2000)
    assert resident_kib(server) - before[0] < SETTLED_KIB
    # A worker that waits for a job has two; there are one or two of them.
    assert len(server.descriptors()) <= before[1] + 2
    assert cli.ids() == set()


def test_what_only_the_client_can_open_is_left_to_it(cli: Cli, server: Server) -> None:
    read, write = os.pipe()
    os.write(write, as_lines([sh("echo served by nobody")]))
    os.close(write)
    finished = cli("batch", f"/dev/fd/{read}", "-q", "--capture", "100", pass_fds=(read,))
    os.close(read)
    assert [r["stdout"] for r in by_line(finished.stdout)] == ["served by nobody\n"]


def test_more_output_than_a_server_would_keep_is_not_asked_of_it(
    cli: Cli, server: Server, rootfs: Path, make_gate: MakeGate
) -> None:
    up, gate = make_gate(rootfs / "up"), make_gate(rootfs / "gate")
    read, write = os.pipe()
    options = ("--rootfs", str(rootfs), "--jobs", "8", "--capture", "16m")
    process = cli.start("batch", "-", *options, stdin=read)
    os.close(read)
    os.write(write, as_lines([sh("echo >/up; read x </gate; echo out")]))
    up.wait()
    (container_id,) = cli.ids()
    assert parent_of(cli.live(container_id).pid) != server.children()["craterun-keeper"]
    gate.open()
    assert json.loads(read_line(process))["stdout"] == "out\n"
    os.close(write)
    assert process.wait() == 0
