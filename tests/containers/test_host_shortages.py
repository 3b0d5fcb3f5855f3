"""Limits of a whole machine, met in one that is ours alone: the guest of the cgroup v2 tier."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Gate, read_line, wait_exit
from tests.containers.host_limits_helpers import PRELUDE, in_user_namespace, program
from tests.uml import in_uml

pytestmark = [
    pytest.mark.cgroup_v2,
    pytest.mark.skipif(not in_uml(), reason="the sysctls of a host are not ours to change"),
]
cli, make_gate = helpers.cli, helpers.make_gate
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
        assert message.endswith(
            "; raise it with: sysctl -w user.max_mnt_namespaces=…, or fs.mount-max=…"
        )
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


NO_MEMORY = """
async def main():
    sizes = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    taken = next(int(words[1]) for words in sizes if words[0] == "Committed_AS:")
    async with Supervisor(STATE) as supervisor:
        first = [await supervisor.start(asks()) for _ in range(3)]
        # Beside what only root gets (vm.admin_reserve_kbytes), room for some.
        Path("/proc/sys/vm/overcommit_kbytes").write_text(str(taken + (32 << 10)))
        Path("/proc/sys/vm/overcommit_memory").write_text("2")
        later, refusal = await until_refused(supervisor)
        again = str(await refused(supervisor))
        for container in first:
            await ends_right(container)
        Path("/proc/sys/vm/overcommit_memory").write_text("0")
        await ends_right(await supervisor.start(asks()))
        # Commands that were executed at the last moment may have found no memory themselves.
        for container in later:
            container.kill()
            await container.wait()
        everything = os.listdir(STATE)
    return [str(refusal), again, cgroups_of(everything)]
"""


def test_memory(rootfs: Path, state_root: Path, set_sysctl: SetSysctl) -> None:
    """Of a host that promises no more than it has; elsewhere the kernel kills instead."""
    state_root.mkdir()
    for name in ("vm.overcommit_memory", "vm.overcommit_kbytes"):
        set_sysctl(name, 0)
    first, again, cgroups = program(NO_MEMORY, rootfs, state_root)
    for message in (first, again):
        assert message.startswith("cannot "), message
        assert "Cannot allocate memory (ENOMEM); the host promises no more memory" in message
        assert "(vm.overcommit_memory = 2), and " in message
        assert message.endswith("or raise it with: sysctl -w vm.overcommit_ratio=…")
    assert cgroups == []


OUT_OF_MEMORY = """
async def main():
    async with Supervisor(STATE) as supervisor:
        container = await supervisor.start(asks("read x </go; echo out; exit 7"))
        await container.recorded()
        print(container.id, parent_of(container.record.pid), flush=True)
        await trio.sleep_forever()
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory whose files take the memory of the whole host, if they are let."""
    path = tmp_path / "room"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100%", "room", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def is_spared() -> Iterator[None]:
    """This process is not what the kernel kills."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("-1000")
    yield
    own.write_text(before)


@pytest.mark.usefixtures("is_spared")
def test_a_supervisor_that_the_kernel_kills_for_want_of_memory_has_a_successor(
    cli: helpers.Cli, rootfs: Path, make_gate: Callable[[Path], Gate], room: Path
) -> None:
    """The host has none left: no limit of a cgroup is met."""
    go = make_gate(rootfs / "go")
    code = f"{PRELUDE}\n{OUT_OF_MEMORY}\ntrio.run(main)"
    command = ["sh", "-c", 'echo 0 >/proc/self/oom_score_adj; exec "$@"', "sh", sys.executable]
    arguments = [*command, "-c", code, str(rootfs), str(cli.state_root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as supervisor:
        container_id, keeper = read_line(supervisor).split()
        first = cli.live(container_id)
        Path(f"/proc/{supervisor.pid}/oom_score_adj").write_text("1000")
        with (room / "balloon").open("wb", buffering=0) as balloon:
            while supervisor.poll() is None:
                balloon.write(bytes(1 << 20))
        assert supervisor.returncode == -9
    os.unlink(room / "balloon")
    assert cli.live(container_id).pid == first.pid
    assert cli.ok("run", "--rootfs", str(rootfs), "--attach", "--", "echo", "next") == "next\n"
    go.open()
    assert cli.ok("wait", container_id) == "7\n"
    assert cli.log(container_id) == b"out\n"
    assert cli.record(container_id)["error"] is None
    wait_exit(int(keeper))
