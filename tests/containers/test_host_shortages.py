"""Limits of a whole machine, met in one that is ours alone: the guest of the cgroup v2 tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.host_limits_helpers import in_user_namespace, program
from tests.uml import in_uml

pytestmark = [
    pytest.mark.cgroup_v2,
    pytest.mark.skipif(not in_uml(), reason="the sysctls of a host are not ours to change"),
]
SetSysctl = Callable[[str, int], None]


@pytest.fixture
def set_sysctl() -> Iterator[SetSysctl]:
    """Sets one, until the test is over."""
    before: list[tuple[Path, str]] = []

    def set_to(name: str, value: int) -> None:
        path = Path("/proc/sys", name.replace(".", "/"))
        before.append((path, path.read_text()))
        path.write_text(str(value))

    yield set_to
    for path, text in reversed(before):
        path.write_text(text)


TOO_MANY_MOUNTS = """
async def main():
    most = Path("/proc/sys/fs/mount-max")
    async with Supervisor(STATE) as supervisor:
        alive = [await supervisor.start(asks()) for _ in range(2)]
        before = most.read_text()
        inside = len(Path(f"/proc/{alive[0].record.pid}/mountinfo").read_text().splitlines())
        messages = []
        for fewer in range(1, inside):
            most.write_text(str(inside - fewer))
            messages.append(str(await refused(supervisor)))
        await ends_right(alive.pop())
        most.write_text(before)
        alive.append(await supervisor.start(asks()))
        for container in alive:
            await ends_right(container)
        everything = os.listdir(STATE)
    return [messages, cgroups_of(everything)]
"""


def test_mounts(rootfs: Path, state_root: Path, set_sysctl: SetSysctl) -> None:
    state_root.mkdir()
    set_sysctl("fs.mount-max", 100_000)
    messages, cgroups = program(TOO_MANY_MOUNTS, rootfs, state_root)
    for message in messages:
        assert "No space left on device (ENOSPC)" in message
        assert "on mounts in one (fs.mount-max = " in message
        assert message.endswith("; raise it with: sysctl -w")
    assert cgroups == []


NO_FILES = """
def hold_all():
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.ENFILE
    return held

async def main():
    messages = []
    async with Supervisor(STATE) as supervisor:
        alive, refusal = await until_refused(supervisor)
        before = set(os.listdir(STATE))
        held = hold_all()
        while held:  # from "none at all" to "nearly enough"
            try:
                await supervisor.start(asks())
            except KernelRefusedError as error:
                messages.append(str(error))
            os.close(held.pop())
        assert set(os.listdir(STATE)) == before
        await ends_right(alive.pop())
        alive.append(await supervisor.start(asks()))
        for container in alive:
            await ends_right(container)
    try:
        async with Supervisor(STATE) as supervisor:
            alive = [await supervisor.start(asks()) for _ in range(3)]
            held = hold_all()
            raise ZeroDivisionError
    except ZeroDivisionError:
        for number in held:
            os.close(number)
    statuses = [container.status.exit_code for container in alive]
    return [[str(refusal), *messages], statuses, cgroups_of(os.listdir(STATE))]
"""


def test_files(rootfs: Path, state_root: Path, set_sysctl: SetSysctl) -> None:
    """Who has CAP_SYS_ADMIN on the host is not bound by this limit; who is root elsewhere is."""
    state_root.mkdir()
    have = int(Path("/proc/sys/fs/file-nr").read_text().split()[0])
    set_sysctl("fs.file-max", have + 250)
    messages, statuses, cgroups = program(NO_FILES, rootfs, state_root, prefix=in_user_namespace())
    assert len(messages) > 3
    for message in messages:
        assert message.startswith("cannot "), message
        assert "Too many open files in system (ENFILE); all files that the host may" in message
        assert message.endswith("or raise it with: sysctl -w fs.file-max=…")
    # Whoever leaves by an error kills what runs, with or without a file to be had.
    assert statuses == [137] * 3
    assert cgroups == []
