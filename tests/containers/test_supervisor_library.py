"""`craterun.Supervisor` as a library: structured, cancellable, and nothing left of what fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from craterun import Container, CraterunError, ExitStatus, Spec, State, Stream, Supervisor
from craterun.core.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    KeeperDiedError,
    NameInUseError,
    NoSuchContainerError,
    RootfsError,
    UsageError,
)
from craterun.core.units import new_id
from tests.conftest import cli_environment
from tests.containers.streams_helpers import (
    Gate,
    cgroups_of,
    check_log,
    command,
    ids,
    is_alive,
    metadata,
    parent_of,
    wait_readable,
)

KILLED = ExitStatus(137, signal.SIGKILL)


def shell(rootfs: Path, script: str, **fields: object) -> Spec:
    """A spec that runs ``script``."""
    return Spec(rootfs=str(rootfs), command=("sh", "-c", script), **fields)  # type: ignore[arg-type]


def pid_of(container: Container) -> int:
    assert container.record.pid is not None
    return container.record.pid


def keeper_ended(keeper: int) -> bool:
    """Whether the keeper is gone, as it has to be once its supervisor has closed."""
    return not is_alive(keeper)


# --- leaving the context ------------------------------------------------------------------------


async def test_leaving_the_context_waits_for_every_container(
    rootfs: Path, state_root: Path
) -> None:
    containers: list[Container] = []
    with Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor:
            for number in range(8):
                script = f"read x </go; echo last of {number}; exit {number}"
                containers.append(await supervisor.start(shell(rootfs, script)))
            keeper = parent_of(pid_of(containers[0]))
            assert all(container.status is None for container in containers)
            for _ in range(8):
                go.open()
    assert [container.status for container in containers] == [ExitStatus(n) for n in range(8)]
    assert keeper_ended(keeper)
    for number, container in enumerate(containers):
        directory = state_root / container.id
        assert metadata(directory)["exit_code"] == number
        check_log(directory, f"last of {number}\n".encode(), b"")
        assert cgroups_of(container.id) == []


async def test_an_exception_in_the_body_kills_the_containers_and_comes_out_as_it_is(
    rootfs: Path, state_root: Path
) -> None:
    class OwnError(Exception):
        pass

    containers: list[Container] = []
    raised = OwnError("of the body")

    async def fail() -> None:
        async with Supervisor(state_root) as supervisor:
            for _ in range(4):
                containers.append(await supervisor.start(shell(rootfs, "read x </block")))
            raise raised

    with Gate(rootfs / "block"), pytest.raises(OwnError) as caught:
        await fail()
    assert caught.value is raised
    for container in containers:
        assert container.status == KILLED
        assert not is_alive(pid_of(container))
        record = metadata(state_root / container.id)
        assert (record["status"], record["exit_code"], record["signal"]) == ("stopped", 137, 9)
        assert cgroups_of(container.id) == []


async def test_an_exception_group_of_the_body_comes_out_as_a_group(
    rootfs: Path, state_root: Path
) -> None:
    """What the caller grouped stays grouped: except* of the caller must go on working."""

    async def fail() -> None:
        async with Supervisor(state_root) as supervisor:
            await supervisor.start(shell(rootfs, "true"))
            raise ExceptionGroup("own", [KeyError("one"), ValueError("two")])

    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    keys, others = caught.value.split(KeyError)
    assert keys is not None
    assert others is not None
    assert others.subgroup(ValueError) is not None
    assert others.subgroup(lambda error: not isinstance(error, ValueError | ExceptionGroup)) is None


# --- cancellation -------------------------------------------------------------------------------


async def test_cancellation_kills_and_keeps_the_last_lines(rootfs: Path, state_root: Path) -> None:
    """The event loop stands still while the container writes: what is in the pipe is still read."""
    with Gate(rootfs / "written") as written, trio.move_on_after(3600) as scope:
        async with Supervisor(state_root) as supervisor:
            script = "echo last words; echo and errors >&2; echo >/written; read x </written.not"
            os.mkfifo(rootfs / "written.not")
            container = await supervisor.start(shell(rootfs, script))
            wait_readable(written.fileno())
            scope.deadline = trio.current_time()
            await trio.Event().wait()
    assert scope.cancelled_caught
    assert container.status == KILLED
    directory = state_root / container.id
    check_log(directory, b"last words\n", b"and errors\n")
    record = metadata(directory)
    assert (record["status"], record["exit_code"], record["signal"]) == ("stopped", 137, 9)
    assert record["error"] is None
    assert cgroups_of(container.id) == []


async def test_cancellation_kills_everything_inside_not_only_the_first_process(
    rootfs: Path, state_root: Path
) -> None:
    with Gate(rootfs / "here") as here, trio.CancelScope() as scope:
        async with Supervisor(state_root) as supervisor:
            script = "mkfifo /tmp/x; for i in 1 2 3; do (echo >/here; cat /tmp/x) & done; wait"
            container = await supervisor.start(shell(rootfs, script))
            arrived = 0
            while arrived < 3:
                arrived += len(here.wait())
            inside = [
                int(pid)
                for path in cgroups_of(container.id)
                for pid in Path(path, "cgroup.procs").read_text().split()
            ]
            scope.cancel()
    assert len(set(inside)) >= 4
    assert [pid for pid in inside if is_alive(pid)] == []


async def test_a_start_that_is_cancelled_leaves_a_stopped_container_or_none(
    rootfs: Path, state_root: Path
) -> None:
    """Started from a task that is cancelled at once; the supervisor goes on."""
    async with Supervisor(state_root) as supervisor:
        for _ in range(20):
            async with trio.open_nursery() as starting:
                starting.start_soon(supervisor.start, shell(rootfs, "exit 4"))
                await trio.lowlevel.checkpoint()
                starting.cancel_scope.cancel()
        after = await supervisor.start(shell(rootfs, "exit 5"))
        assert await after.wait() == ExitStatus(5)
    for container_id in ids(state_root):
        assert metadata(state_root / container_id)["status"] == "stopped"
        assert cgroups_of(container_id) == []


async def test_cancelling_the_supervisor_while_it_starts_leaves_nothing_alive(
    rootfs: Path, state_root: Path
) -> None:
    with Gate(rootfs / "block"), trio.CancelScope() as scope:
        async with Supervisor(state_root) as supervisor, trio.open_nursery() as starting:
            for _ in range(8):
                starting.start_soon(supervisor.start, shell(rootfs, "read x </block"))
            await trio.lowlevel.checkpoint()
            scope.cancel()
    for container_id in ids(state_root):
        record = metadata(state_root / container_id)
        assert (record["status"], record["exit_code"]) == ("stopped", 137)
        assert cgroups_of(container_id) == []


async def test_a_cancelled_wait_leaves_the_container_alone(rootfs: Path, state_root: Path) -> None:
    with Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor:
            container = await supervisor.start(shell(rootfs, "read x </go; exit 3"))
            with trio.CancelScope() as scope:
                scope.cancel()
                await container.wait()
            assert scope.cancelled_caught
            assert is_alive(pid_of(container))
            go.open()
            assert await container.wait() == ExitStatus(3)


# --- failing starts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"command": ("no-such-command",)}, CommandNotFoundError),
        ({"command": ("/etc/passwd",)}, CommandNotExecutableError),
        ({"command": ("true",), "workdir": "/missing"}, CraterunError),
        ({"command": ("true",), "user": "nobody-here"}, UsageError),
        ({"command": ("true",), "name": "taken"}, NameInUseError),
        ({"command": ("true",), "rootfs": "/nowhere"}, RootfsError),
        ({"command": ()}, UsageError),
    ],
)
async def test_a_start_that_fails_leaves_nothing_and_disturbs_nobody(
    rootfs: Path,
    state_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    error: type[Exception],
) -> None:
    tried: list[str] = []

    def recorded() -> str:
        tried.append(new_id())
        return tried[-1]

    monkeypatch.setattr("craterun.supervisor.preparation.new_id", recorded)
    with Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor:
            neighbour = await supervisor.start(shell(rootfs, "read x </go; exit 3", name="taken"))
            with pytest.raises(error) as caught:
                await supervisor.start(Spec(**{"rootfs": str(rootfs), **fields}))  # type: ignore[arg-type]
            assert isinstance(caught.value, CraterunError)
            assert ids(state_root) == [neighbour.id]
            assert os.listdir(state_root / ".names") == ["taken"]
            for failed in tried[1:]:
                assert cgroups_of(failed) == []
            go.open()
            assert await neighbour.wait() == ExitStatus(3)


async def test_a_start_after_the_end_says_what_to_do(rootfs: Path, state_root: Path) -> None:
    supervisor = Supervisor(state_root)
    async with supervisor:
        await supervisor.start(shell(rootfs, "true"))
    before = ids(state_root)
    with pytest.raises((CraterunError, RuntimeError), match="async with"):
        await supervisor.start(shell(rootfs, "true"))
    assert ids(state_root) == before


async def test_a_start_before_the_beginning_says_what_to_do(rootfs: Path, state_root: Path) -> None:
    supervisor = Supervisor(state_root)
    with pytest.raises((CraterunError, RuntimeError), match="async with"):
        await supervisor.start(shell(rootfs, "true"))
    assert ids(state_root) == []


async def test_a_signal_to_a_container_that_has_ended_is_refused(
    rootfs: Path, state_root: Path
) -> None:
    async with Supervisor(state_root) as supervisor:
        container = await supervisor.start(shell(rootfs, "exit 3"))
        assert await container.wait() == ExitStatus(3)
        with pytest.raises(CraterunError, match="not running"):
            container.send_signal(signal.SIGTERM)
        container.kill()
        assert await container.wait() == ExitStatus(3)
    assert container.record.status is State.STOPPED


async def test_a_killed_keeper_is_told_to_all_who_wait_and_to_the_next_who_starts(
    rootfs: Path, state_root: Path
) -> None:
    with Gate(rootfs / "block"):
        async with Supervisor(state_root) as supervisor:
            containers = [await supervisor.start(shell(rootfs, "read x </block")) for _ in range(3)]
            os.kill(parent_of(pid_of(containers[0])), signal.SIGKILL)
            for container in containers:
                assert await container.wait() == ExitStatus(None)
                assert not is_alive(pid_of(container))
                assert cgroups_of(container.id) == []
            with pytest.raises(KeeperDiedError):
                await supervisor.start(shell(rootfs, "true"))
    assert sorted(ids(state_root)) == sorted(container.id for container in containers)
    for container in containers:
        record = metadata(state_root / container.id)
        assert (record["status"], record["exit_code"]) == ("stopped", None)
        assert "keeper died" in record["error"]


# --- several at once ----------------------------------------------------------------------------


async def test_two_supervisors_share_a_state_root(rootfs: Path, state_root: Path) -> None:
    """Interleaved, they see each other's names and disturb nothing of each other's."""
    with Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as one, Supervisor(state_root) as two:
            first = await one.start(shell(rootfs, "read x </go; echo one; exit 1", name="first"))
            second = await two.start(shell(rootfs, "read x </go; echo two; exit 2", name="second"))
            assert parent_of(pid_of(first)) != parent_of(pid_of(second))
            with pytest.raises(NameInUseError):
                await two.start(shell(rootfs, "true", name="first"))
            await second.recorded()
            execution = await one.execute("second", ("sh", "-c", "echo executed; exit 8"))
            assert await execution.receive(Stream.STDOUT) == b"executed\n"
            assert await execution.receive(Stream.STDOUT) == b""
            assert await execution.receive(Stream.STDERR) == b""
            assert await execution.wait() == ExitStatus(8)
            go.open()
            go.open()
            assert (await first.wait(), await second.wait()) == (ExitStatus(1), ExitStatus(2))
    check_log(state_root / first.id, b"one\n", b"")
    check_log(state_root / second.id, b"two\n", b"")
    with pytest.raises(NoSuchContainerError):
        one.store.resolve("third")


async def test_exec_works_as_soon_as_start_has_returned(rootfs: Path, state_root: Path) -> None:
    """Our own supervisor knows that the container runs, whatever is on disk by then."""
    with Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor:
            for _ in range(20):
                container = await supervisor.start(shell(rootfs, "read x </go"))
                execution = await supervisor.execute(container.id, ("true",))
                for stream in Stream:
                    assert await execution.receive(stream) == b""
                assert await execution.wait() == ExitStatus(0)
                go.open()
                assert await container.wait() == ExitStatus(0)


async def test_a_waiter_elsewhere_learns_of_an_end_while_the_supervisor_is_idle(
    rootfs: Path, state_root: Path
) -> None:
    """Nothing else happens in the supervisor that could carry the news along."""
    with Gate(rootfs / "block"), Gate(rootfs / "go") as go:
        async with Supervisor(state_root) as supervisor:
            other = await supervisor.start(shell(rootfs, "read x </block"))
            container = await supervisor.start(shell(rootfs, "read x </go; exit 6"))
            go.open()
            waited = await trio.run_process(
                command("wait", container.id),
                env=cli_environment(state_root),
                capture_stdout=True,
                stdin=subprocess.DEVNULL,
            )
            assert waited.stdout == b"6\n"
            assert other.status is None
            other.kill()
            assert await other.wait() == KILLED


async def test_a_supervisor_that_ran_nothing_leaves_nothing(state_root: Path) -> None:
    async with Supervisor(state_root):
        pass
    assert ids(state_root) == []


_ENTERED_LATE = """
import sys
import trio
from craterun import Supervisor

async def main(seconds):
    with trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + seconds
        async with Supervisor(sys.argv[1]):
            await trio.sleep_forever()
    assert scope.cancelled_caught

for seconds in (-1, 0, 0.0002, 0.001, 0.003, 0.01):
    trio.run(main, seconds)
"""


def test_entering_it_while_cancelled_ends_and_leaves_no_keeper(state_root: Path) -> None:
    subprocess.run([sys.executable, "-c", _ENTERED_LATE, state_root], timeout=60, check=True)
