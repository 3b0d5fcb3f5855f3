"""Which open files a container inherits: its three streams, and never anything of the host."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Live, read_line

cli = helpers.cli

HIGH = 200


@pytest.fixture
def extra(tmp_path: Path) -> Iterator[list[int]]:
    """What a careless parent leaves open: directories, a file, a socket; low and high numbers."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    fds = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(24)]
    fds.append(os.open(secret, os.O_RDWR))
    with socket.socket(socket.AF_UNIX) as listening:
        fds += [os.dup(listening.fileno()), os.dup2(fds[0], HIGH)]
        yield fds
    for fd in fds:
        os.close(fd)


def check_streams(live: Live, *, stdin_pipe: bool = False) -> None:
    """Only 0, 1 and 2: pipes, and /dev/null of the container's own /dev."""
    descriptors = live.descriptors()
    assert set(descriptors) == {0, 1, 2}, descriptors
    for number in (1, 2):
        assert descriptors[number].startswith("pipe:"), descriptors
    stdin = os.stat(live.proc / "fd/0")
    if stdin_pipe:
        assert descriptors[0].startswith("pipe:"), descriptors
    else:
        assert (os.major(stdin.st_rdev), os.minor(stdin.st_rdev)) == (1, 3)
        # Not the host's: root inside could change the mode and owner of that through /proc.
        assert stdin.st_dev == os.stat(live.root("dev")).st_dev, "stdin is the host's /dev/null"


@pytest.mark.parametrize("mode", [(), ("--attach",), ("--interactive",)])
def test_run_gives_three_streams_and_nothing_else(
    mode: tuple[str, ...], cli: Cli, rootfs: Path, extra: list[int]
) -> None:
    arguments = ("--rootfs", str(rootfs), *mode, "--", "sh", "-c", "echo; exec sleep 1000000")
    process = cli.start("run", *arguments, pass_fds=extra, stdin=subprocess.PIPE)
    read_line(process)  # the id, or what the command says, according to the mode
    (container_id,) = cli.ids()
    check_streams(cli.live(container_id), stdin_pipe="--interactive" in mode)


@pytest.mark.parametrize("init", [(), ("--init",)])
def test_detached_run_gives_three_streams_and_nothing_else(
    init: tuple[str, ...], cli: Cli, rootfs: Path, extra: list[int]
) -> None:
    first = cli.detach("--rootfs", str(rootfs), *init, "--", *SLEEP, pass_fds=extra)
    processes = first.siblings()
    assert len(processes) == 1 + len(init)
    check_streams(processes[-1])
    if init:
        # It holds no end of the container's pipes: they end with the command's own processes.
        null = (1, 3)
        assert set(first.descriptors()) == {0, 1, 2}
        for number in (0, 1, 2):
            rdev = os.stat(first.proc / f"fd/{number}").st_rdev
            assert (os.major(rdev), os.minor(rdev)) == null


@pytest.mark.parametrize("interactive", [(), ("--interactive",)])
def test_exec_gives_three_streams_and_nothing_else(
    interactive: tuple[str, ...], cli: Cli, rootfs: Path, extra: list[int]
) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    command = ("sh", "-c", "echo; exec sleep 1000000")
    process = cli.start(
        "exec", *interactive, first.id, "--", *command, pass_fds=extra, stdin=subprocess.PIPE
    )
    read_line(process)
    one, two = first.siblings()
    assert one.pid == first.pid
    check_streams(two, stdin_pipe=bool(interactive))


CLOSED = ("<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-")


@pytest.mark.parametrize("mode", ["", "--detach", "--attach"])
@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_line_without_some_streams_works_and_is_not_confused(
    closed: str, mode: str, cli: Cli, rootfs: Path
) -> None:
    # The first descriptors that anything opens get the numbers of the missing ones.
    script = "echo out; echo err >&2; ls /proc/self/fd; exit 7"
    arguments = ["run", "--rootfs", str(rootfs), *mode.split(), "--", "sh", "-c", script]
    result = cli.behind("sh", "-c", f'exec "$@" {closed}', "sh")(*arguments)
    assert result.returncode == (0 if mode == "--detach" else 7), result
    (container_id,) = cli.ids()
    assert cli.ok("wait", container_id) == "7\n"
    assert cli.log(container_id) == b"out\n0\n1\n2\n3\n"
    assert cli.log(container_id, "stderr") == b"err\n"
    if mode == "--attach" and ">&-" not in closed.split():
        assert result.stdout == cli.log(container_id)


def test_the_background_supervisor_keeps_nothing_of_ours_open(
    cli: Cli, rootfs: Path, extra: list[int]
) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP, pass_fds=extra)
    parent = Live(int(first.status()["PPid"]))  # the keeper
    supervisor = Live(int(parent.status()["PPid"]))
    for process in (parent, supervisor):
        held = process.descriptors()
        assert not [target for target in held.values() if "secret" in target]
        assert not [n for n in held if os.path.samefile(process.proc / f"fd/{n}", "/")]
        assert {os.path.basename(held[n]) for n in (0, 1, 2)} == {"null"}
        stat = (process.proc / "stat").read_text().rpartition(")")[2].split()
        assert stat[4] == "0", "no controlling terminal"
        assert os.readlink(process.proc / "cwd") == "/"


# --- the working directory (CVE-2024-21626) -------------------------------------------------------

NUMBERS = [*range(3, 21), HIGH]


@pytest.fixture
def descriptors_3_to_20(extra: list[int]) -> Iterator[list[int]]:
    """All of `NUMBERS` refer to the host's root in the command line's process."""
    assert HIGH in extra
    made = []
    for number in range(3, 21):
        try:
            os.fstat(number)
        except OSError:
            made.append(os.dup2(HIGH, number))
    yield [*range(3, 21), HIGH]
    for number in made:
        os.close(number)


def _directories(numbers: list[int]) -> list[str]:
    """Ways to say "that directory which somebody left open"."""
    return [
        *(f"/proc/self/fd/{number}" for number in numbers),
        *(f"/proc/1/fd/{number}" for number in numbers[:3]),
        *(f"/proc/thread-self/fd/{number}/.." for number in numbers[:3]),
        *(f"/link-{number}" for number in numbers[:6]),
    ]


@pytest.mark.parametrize("how", ["run", "exec"])
def test_no_descriptor_of_the_host_can_be_the_working_directory(
    how: str, cli: Cli, rootfs: Path, descriptors_3_to_20: list[int]
) -> None:
    for number in descriptors_3_to_20:
        (rootfs / f"link-{number}").symlink_to(f"/proc/self/fd/{number}")
    first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    where = ("run", "--rootfs", str(rootfs), "--attach") if how == "run" else ("exec",)
    what = () if how == "run" else (first.id,)
    for directory in _directories(descriptors_3_to_20):
        command = (*where, "--workdir", directory, *what, "--", "ls")
        result = cli(*command, pass_fds=descriptors_3_to_20)
        assert "workdir" in helpers.the_complaint(result, 125), directory


@pytest.mark.parametrize("how", ["run", "exec"])
@pytest.mark.parametrize(
    ("directory", "seen"),
    [
        ("/tmp", "/tmp"),
        ("/up", "/"),
        ("/../../..", "/"),
        ("/absolute", "/tmp"),
        ("/proc/self/root", "/"),
        ("/proc/1/cwd", "/"),
        ("/proc/self/cwd", "/"),
        ("/tmp/../tmp/.", "/tmp"),
    ],
)
def test_a_working_directory_that_seems_to_leave_stays_inside(
    how: str, directory: str, seen: str, cli: Cli, rootfs: Path
) -> None:
    (rootfs / "up").symlink_to("../../../../../../../..")
    (rootfs / "absolute").symlink_to("/tmp")
    command = ("sh", "-c", "readlink /proc/self/cwd; stat -c %i .")
    if how == "run":
        result = cli("run", "--rootfs", str(rootfs), "-w", directory, "-a", "--", *command)
    else:
        first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
        result = cli("exec", "-w", directory, first.id, "--", *command)
    inode = (rootfs / seen.lstrip("/")).stat().st_ino
    assert (result.returncode, result.stdout) == (0, f"{seen}\n{inode}\n".encode())


# --- reopening the streams ------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "alice", "4242:4242"])
@pytest.mark.parametrize("how", ["run", "exec"])
def test_any_user_can_reopen_the_standard_streams(
    how: str, user: str, cli: Cli, rootfs: Path
) -> None:
    script = (
        "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr;"
        "echo more >> /proc/self/fd/1; cat /dev/null"
    )
    command = ("--", "sh", "-c", script)
    if how == "run":
        where = ("run", "--rootfs", str(rootfs), "-u", user, "-a", "-i")
        result = cli(*where, *command, stdin=b"input\n")
    else:
        first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
        result = cli("exec", "-u", user, "-i", first.id, *command, stdin=b"input\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"input\nout\nmore\n", b"err\n")


def test_a_user_who_is_not_the_owner_can_write_to_the_streams_after_su(
    cli: Cli, rootfs: Path
) -> None:
    # Programs that begin as root and change their user: the pipe belongs to root then.
    script = "busybox su alice -c 'id -u; echo out > /dev/stdout; echo err > /dev/stderr'"
    result = cli("run", "--rootfs", str(rootfs), "-a", "--", "sh", "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"1000\nout\n", b"err\n")


def test_exec_cannot_change_the_hosts_null_device(cli: Cli, rootfs: Path) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    before = os.stat("/dev/null").st_mtime_ns
    cli.ok("exec", first.id, "--", "touch", "/proc/self/fd/0")
    assert os.stat("/dev/null").st_mtime_ns == before
