"""Limits on open files, met by supervisor, keeper and command line: the start that does not fit is
told why, the others live.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.host_limits_helpers import program

cli = helpers.cli

TOO_MANY_FILES = """
async def main():
    async with Supervisor(STATE) as supervisor:
        first = len(os.listdir("/proc/self/fd"))
        alive, refusal = await until_refused(supervisor)
        assert refusal.errno == errno.EMFILE, refusal
        again = str(await refused(supervisor))
        # An OOM kill, told live; a start in the place of one that has ended.
        hog = alive.pop()
        await ends_right(hog)
        hog = await supervisor.start(asks("read x; tail /dev/zero; read x; exit 7",
                                          limits=Limits(memory=8 << 20)))
        os.write(hog.stdin.fileno(), b"go\\n")
        with trio.fail_after(60):
            assert await hog.wait_oom(0) == 1
        # All speak while there is no room for another one, and none has ended.
        await refused(supervisor)
        os.write(hog.stdin.fileno(), b"go\\n")
        assert await hog.wait() == ExitStatus(7)
        assert hog.record.oom_kills == 1
        for container in alive:
            await ends_right(container)
        await ends_right(await supervisor.start(asks()))
        assert len(os.listdir("/proc/self/fd")) <= first + 2, os.listdir("/proc/self/fd")
        everything = os.listdir(STATE)
    return [len(alive), str(refusal), again, cgroups_of(everything)]
"""


@pytest.mark.parametrize("limit", [96, 256])
def test_open_files_of_supervisor_and_keeper(limit: int, rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    prefix = ("prlimit", f"--nofile={limit}:{limit}", "--")
    alive, first, again, cgroups = program(TOO_MANY_FILES, rootfs, state_root, prefix=prefix)
    assert alive >= limit // 16
    for message in (first, again):
        assert "Too many open files" in message
        assert f"may have {limit} descriptors" in message
        assert "ulimit -n" in message
    assert cgroups == []


KEEPERS_FILES = """
async def main():
    messages = []
    async with Supervisor(STATE) as supervisor:
        alive = [await supervisor.start(asks()) for _ in range(4)]
        keeper = parent_of(alive[0].record.pid)
        had = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
        held = len(os.listdir(f"/proc/{keeper}/fd"))
        # From "not even the descriptor of the request" to "all but what is kept".
        for more in range(-10, 12):
            resource.prlimit(keeper, resource.RLIMIT_NOFILE, (held + more, had[1]))
            messages.append(str(await refused(supervisor)))
            terminal = Spec(rootfs=ROOTFS, command=("cat",), terminal=True)
            messages.append(str(await refused(supervisor, terminal)))
            large = asks(env={"LARGE": "x" * 100_000})
            messages.append(str(await refused(supervisor, large)))
        await ends_right(alive.pop())
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, had)
        alive.append(await supervisor.start(asks()))  # along with it goes what is released
        # It closes its end of an input once it has passed that on: perhaps not yet.
        assert len(os.listdir(f"/proc/{keeper}/fd")) <= held + 1
        alive.append(await supervisor.start(asks(env={"LARGE": "x" * 100_000})))
        for container in alive:
            await ends_right(container)
        everything = os.listdir(STATE)
    return [messages, cgroups_of(everything)]
"""


def test_open_files_of_the_keeper_alone(rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    messages, cgroups = program(KEEPERS_FILES, rootfs, state_root)
    for message in messages:
        assert message.startswith("cannot start a process: "), message
        assert "Too many open files (EMFILE); the keeper may have" in message, message
    assert any("recvmsg" in message for message in messages), "none was lost on its way"
    assert cgroups == []


LOST_ON_ARRIVAL = """
async def main():
    async with Supervisor(STATE) as supervisor:
        alive = [await supervisor.start(asks()) for _ in range(3)]
        keeper = parent_of(alive[0].record.pid)
        for container in alive:
            await container.recorded()  # nothing of them is still to be written
        had = resource.getrlimit(resource.RLIMIT_NOFILE)
        launch = supervisor._launch
        messages = []

        async def short(services, prepared, replacing=None):
            "Between the preparation and the answer, somebody opens all that may be opened."
            resource.setrlimit(resource.RLIMIT_NOFILE, (prepared.directory.fileno() + more, had[1]))
            try:
                return await launch(services, prepared, replacing)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, had)

        supervisor._launch = short
        for more in (1, 2, 3):
            messages.append(str(await refused(supervisor, asks("touch /tmp/lives; read x"))))
            children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
            for pid in {int(child) for child in children} - {c.record.pid for c in alive}:
                pidfd = os.pidfd_open(pid)  # killed, but perhaps not reaped yet
                with trio.fail_after(60):
                    await trio.lowlevel.wait_readable(pidfd)
                os.close(pidfd)
        supervisor._launch = launch
        alive.append(await supervisor.start(asks()))
        for container in alive:
            await ends_right(container)
        everything = os.listdir(STATE)
    return [messages, cgroups_of(everything)]
"""


def test_open_files_of_the_supervisor_when_the_answer_comes(rootfs: Path, state_root: Path) -> None:
    state_root.mkdir()
    messages, cgroups = program(LOST_ON_ARRIVAL, rootfs, state_root)
    assert len(messages) == 3
    for message in messages:
        assert "recvmsg: Too many open files (EMFILE); this process may have" in message
    assert cgroups == []


def test_open_files_of_the_command_line(cli: helpers.Cli, rootfs: Path) -> None:
    """However few: it runs, or one line says what is wrong, and nothing is left."""
    codes = set()
    for limit in (*range(7, 40, 3), 48, 64):  # with fewer, there is no Python
        before = cli.ids()
        behind = cli.behind("prlimit", f"--nofile={limit}:{limit}", "--")
        result = behind("run", "--attach", "--rootfs", str(rootfs), "--", "echo", "hi")
        codes.add(result.returncode)
        if result.returncode == 0:
            assert result.stdout == b"hi\n"
        else:
            message = helpers.the_complaint(result, 125)
            assert "files" in message, message
            assert cli.ids() == before
    assert codes >= {0, 125}
