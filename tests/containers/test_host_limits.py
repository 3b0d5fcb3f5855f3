"""The machine's limits, met one by one: the start that does not fit is told why, the others live.

Each program here has one supervisor as a library, in a process of its own to which the limit
applies: its own limit on open files, a pids or memory cgroup, the sysctls of a user namespace.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.core.cgroups import CgroupPlan
from craterun.core.errors import KernelRefusedError
from craterun.linux import cgroup
from craterun.linux.host import hierarchies
from craterun.linux.proc import parse_mountinfo
from tests.conftest import cli_environment
from tests.containers import helpers, host_limits_helpers
from tests.containers.helpers import Gate, read_line, wait_exit
from tests.containers.host_limits_helpers import PRELUDE, in_user_namespace, program
from tests.leaks import reap_orphans

cli = helpers.cli
make_gate = helpers.make_gate
own_cgroup = host_limits_helpers.own_cgroup


def into(cgroup: Path) -> tuple[str, ...]:
    """Command in front of one that shall be in ``cgroup``."""
    return ("sh", "-c", 'echo 0 > "$0/cgroup.procs"; exec "$@"', str(cgroup))


def wait_for_refusal(events: Path) -> None:
    """Until a pids cgroup's ``pids.events`` counts a fork that was refused.

    By looking again and again: since Linux 6.11 its changes are no longer reported to poll(2) on
    version 1, where the kernel notifies ``pids.events.local``, which only version 2 has.
    """
    for _ in range(helpers.PATIENCE_SECONDS * 50):
        if events.read_text().split() != ["max", "0"]:
            return
        time.sleep(0.02)
    raise AssertionError(f"{events} counts no refused fork")


# --- processes ------------------------------------------------------------------------------------

TOO_MANY_PROCESSES = """
async def main():
    pids = MORE[0]

    def most(text):
        Path(pids, "pids.max").write_text(text)

    def now():
        return Path(pids, "pids.current").read_text().strip()

    short = []

    async def hold_thread(pipe, begun):
        token = trio.lowlevel.current_trio_token()

        def held():
            token.run_sync_soon(begun.set)
            os.read(pipe, 1)

        try:
            await trio.to_thread.run_sync(held)
        except RuntimeError as error:
            short.append(error)
            begun.set()

    async with Supervisor(STATE) as supervisor, trio.open_nursery() as holders:
        alive = [await supervisor.start(asks()) for _ in range(3)]
        chatty = await supervisor.start(asks("read x; head -c 3000000 /dev/zero; exit 7"))
        reader = chatty.follow(Stream.STDOUT)
        most(now())
        # The threads that trio keeps for the next job have one.
        wait, go = os.pipe()
        while True:
            begun = trio.Event()
            holders.start_soon(hold_thread, wait, begun)
            await begun.wait()
            if short:
                break
        refusal = await refused(supervisor)
        assert refusal.errno == errno.EAGAIN, refusal
        # Neither the clerk nor a pump gets a thread.
        os.write(chatty.stdin.fileno(), b"go\\n")
        size = 0
        while data := await reader.receive():
            size += len(data)
        reader.close()
        assert (await chatty.wait(), size) == (ExitStatus(7), 3_000_000)
        assert os.stat(f"{STATE}/{chatty.id}/stdout.log").st_size == size
        await ends_right(alive.pop())
        unknown = Spec(rootfs=MORE[1], command=("true",))
        no_thread = str(await refused(supervisor, unknown))
        os.close(go)
        most("max")
        alive.append(await supervisor.start(unknown))
        assert await alive.pop().wait() == ExitStatus(0)
        alive.append(await supervisor.start(asks()))
        for container in alive:
            await ends_right(container)
        everything = os.listdir(STATE)
    return [str(refusal), no_thread, cgroups_of(everything)]
"""


@pytest.mark.parametrize("own_cgroup", ["pids"], indirect=True)
def test_a_pids_cgroup_around_supervisor_and_keeper(
    own_cgroup: Path, rootfs: Path, state_root: Path, tmp_path: Path
) -> None:
    state_root.mkdir()
    other = tmp_path / "other"
    shutil.copytree(rootfs, other, symlinks=True)
    refusal, no_thread, cgroups = program(
        TOO_MANY_PROCESSES, rootfs, state_root, str(own_cgroup), str(other), prefix=into(own_cgroup)
    )
    assert refusal.startswith("cannot start a process: clone3: ")
    assert f"the cgroup {own_cgroup} has as many processes as its pids.max allows" in refusal
    assert no_thread.startswith("cannot start the container: ")
    assert f"the cgroup {own_cgroup} has" in no_thread
    assert cgroups == []


@pytest.mark.parametrize("own_cgroup", ["pids"], indirect=True)
def test_in_the_background_the_cause_is_told_as_well(
    own_cgroup: Path, cli: helpers.Cli, rootfs: Path
) -> None:
    for most in range(1, 12):
        (own_cgroup / "pids.max").write_text(str(most))
        command = cli.command(
            "--no-serve", "run", "--detach", "--rootfs", str(rootfs), "--", "true"
        )
        finished = subprocess.run(
            [*into(own_cgroup), *command],
            env=cli_environment(cli.state_root),
            capture_output=True,
            check=False,
            timeout=60,
        )
        said = finished.stderr.decode()
        if finished.returncode == 0:
            break
        assert f"the cgroup {own_cgroup} has as many processes" in said, (most, said)
        assert said.count("\n") == 1
        assert cli.ids() == set()
        # A daemon is ours to be reaped, and counts until then.
        while (own_cgroup / "pids.current").read_text() != "0\n":
            reap_orphans()
    assert most > 2
    cli.ok("wait", *cli.ids())


@pytest.mark.parametrize("own_cgroup", ["pids"], indirect=True)
@pytest.mark.parametrize("most", [3, 4, 5])
def test_a_batch_among_few_processes_has_a_result_for_every_job(
    own_cgroup: Path, cli: helpers.Cli, rootfs: Path, tmp_path: Path, most: int
) -> None:
    (own_cgroup / "pids.max").write_text(str(most))
    (tmp_path / "jobs").write_text('{"command": ["true"]}\n' * 24)
    options = ("--jobs", "8", "--rm", "--quiet", "--rootfs", str(rootfs))
    finished = subprocess.run(
        [*into(own_cgroup), *cli.command("--no-serve", "batch", str(tmp_path / "jobs"), *options)],
        env=cli_environment(cli.state_root),
        capture_output=True,
        check=False,
        timeout=120,
    )
    results = [json.loads(line) for line in finished.stdout.splitlines()]
    if finished.returncode == 125:  # it could not even begin
        assert (results, finished.stderr.count(b"\n")) == ([], 1), finished
    else:
        assert sorted(result["line"] for result in results) == list(range(1, 25)), finished
        assert {result["failure"] for result in results} <= {None, "error"}
    assert cli.ids() == set()


SUCCESSOR_HAS_TO_WAIT = """
async def main():
    pids = MORE[0]
    async with Supervisor(STATE) as supervisor:
        container = await supervisor.start(asks("read x </go; echo out; echo err >&2; exit 7"))
        await container.recorded()
        print(container.id, parent_of(container.record.pid), flush=True)
        await trio.sleep_forever()
"""


@pytest.mark.parametrize("own_cgroup", ["pids"], indirect=True)
def test_a_successor_that_cannot_be_started_yet_is_started_later(
    own_cgroup: Path, cli: helpers.Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    """Meanwhile the container lives on, and what it writes is not lost."""
    go = make_gate(rootfs / "go")
    code = f"{PRELUDE}\n{SUCCESSOR_HAS_TO_WAIT}\ntrio.run(main)"
    command = [*into(own_cgroup), sys.executable, "-c", code, str(rootfs), str(cli.state_root)]
    with subprocess.Popen([*command, ""], stdout=subprocess.PIPE) as supervisor:
        container_id, keeper = read_line(supervisor).split()
        first = cli.live(container_id)
        (own_cgroup / "pids.max").write_text("1")  # room for the keeper alone
        supervisor.kill()
    wait_for_refusal(own_cgroup / "pids.events")
    go.open()
    wait_exit(first.pid)
    assert cli.record(container_id)["status"] == "running", "there is nobody to record its end"
    (own_cgroup / "pids.max").write_text("max")
    assert cli.ok("wait", container_id) == "7\n"
    assert cli.log(container_id) == b"out\n"
    assert cli.log(container_id, "stderr") == b"err\n"
    assert cli.record(container_id)["error"] is None
    wait_exit(int(keeper))


# --- namespaces, inotify: sysctls of a user namespace ---------------------------------------------

TOO_MANY_NAMESPACES = """
async def main():
    async with Supervisor(STATE) as supervisor:
        alive, refusal = await until_refused(supervisor)
        again = str(await refused(supervisor))
        count = len(alive)
        await ends_right(alive.pop())
        # Namespaces go when the kernel comes to it, after the last process of them has.
        with trio.fail_after(60):
            while True:
                try:
                    alive.append(await supervisor.start(asks()))
                    break
                except KernelRefusedError as error:
                    assert error.errno == errno.ENOSPC
        for container in alive:
            await ends_right(container)
    return [count, refusal.errno, str(refusal), again]
"""


@pytest.mark.parametrize("kind", ["net", "pid", "mnt", "uts", "ipc"])
def test_namespaces(kind: str, rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    prefix = in_user_namespace(f"user/max_{kind}_namespaces=5")
    count, number, refusal, again = program(TOO_MANY_NAMESPACES, rootfs, state_root, prefix=prefix)
    assert 3 <= count <= 5
    assert number == errno.ENOSPC
    for message in (refusal, again):
        assert f"user.max_{kind}_namespaces = 5" in message, message
        assert "sysctl -w" in message


RESTARTS_UNHEARD = """
async def main():
    async with Supervisor(STATE) as supervisor:
        policy = RestartPolicy(Condition.ON_FAILURE, 2)
        spec = Spec(rootfs=ROOTFS, command=("sh", "-c", "echo again; exit 7"), restart=policy)
        container = await supervisor.start(spec)
        assert await container.wait() == ExitStatus(7)
        record = json.loads(Path(STATE, container.id, "metadata.json").read_text())
    return [record["restarts"], record["error"]]
"""


def test_inotify_instances(rootfs: Path, state_root: Path) -> None:
    prefix = in_user_namespace("user/max_inotify_instances=0")
    state_root.mkdir()
    assert program(RESTARTS_UNHEARD, rootfs, state_root, prefix=prefix) == [2, None]


def test_commands_that_watch_say_which_limit_they_met(cli: helpers.Cli, rootfs: Path) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--", *helpers.SLEEP)
    for command in (("events", "--follow"), ("logs", "--follow", first.id)):
        behind = cli.behind(*in_user_namespace("user/max_inotify_instances=0"))
        assert "max_user_instances" in behind.refused(*command), command


# --- cgroups --------------------------------------------------------------------------------------


def test_cgroups_below_a_cgroup() -> None:
    mounts = hierarchies(parse_mountinfo(Path("/proc/self/mountinfo").read_text()))
    unified = next((h.mountpoint for h in mounts if h.version == 2), None)
    if unified is None:
        pytest.skip("no version 2 hierarchy")
    parent = Path(unified, f"craterun-test-{os.getpid()}")
    parent.mkdir()
    try:
        (parent / "cgroup.max.descendants").write_text("0")
        with pytest.raises(KernelRefusedError, match=r"EAGAIN.*cgroup\.max\.descendants"):
            cgroup.create(CgroupPlan(f"{parent}/one", ()))
    finally:
        parent.rmdir()


# --- memory ---------------------------------------------------------------------------------------

KEEPER_OUT_OF_MEMORY = """
async def main():
    memory = Path(MORE[0])
    async with Supervisor(STATE) as supervisor:
        alive = [await supervisor.start(asks()) for _ in range(3)]
        keeper = parent_of(alive[0].record.pid)
        Path(f"/proc/{keeper}/oom_score_adj").write_text("1000")
        Path(memory, "memory.limit_in_bytes").write_text(str(128 << 20))
        # The keeper is the first victim (it counts as the whole limit), then who takes so much.
        await trio.run_process([sys.executable, "-c", "b'x' * (1 << 30)"], check=False)
        statuses = [(await container.wait()).exit_code for container in alive]
        try:
            await supervisor.start(asks())
        except CraterunError as error:
            refusal = error
        records = [json.loads(Path(STATE, c.id, "metadata.json").read_text()) for c in alive]
        everything = os.listdir(STATE)
    errors = [record["error"] for record in records]
    return [statuses, errors, type(refusal).__name__, str(refusal), cgroups_of(everything)]
"""


@pytest.mark.parametrize("own_cgroup", ["memory"], indirect=True)
def test_a_keeper_killed_for_want_of_memory_is_a_crash_that_is_told_as_what_it_was(
    own_cgroup: Path, rootfs: Path, state_root: Path
) -> None:
    state_root.mkdir()
    statuses, errors, kind, refusal, cgroups = program(
        KEEPER_OUT_OF_MEMORY, rootfs, state_root, str(own_cgroup), prefix=into(own_cgroup)
    )
    assert statuses == [None] * 3
    assert kind == "KeeperDiedError"
    assert refusal.startswith("the keeper process has died, and its containers with it: SIGKILL; ")
    for message in (*errors, refusal):
        assert f"in its cgroup {own_cgroup} the kernel has killed" in message
        assert "for want of memory" in message
    assert cgroups == []
