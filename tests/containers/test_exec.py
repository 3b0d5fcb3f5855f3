"""What a process gets from ``run`` and from ``exec`` alike, and what is special about ``exec``."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.containers import helpers
from tests.containers.helpers import (
    DEFAULT_CAPABILITIES,
    SLEEP,
    Cli,
    Finished,
    Gate,
    Live,
    read_line,
    the_complaint,
    wait_exit,
)

cli = helpers.cli
make_gate = helpers.make_gate


class Execute(Protocol):
    """``run --attach`` or ``exec``: options, then the command."""

    def __call__(
        self,
        *command: str | bytes,
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> Finished: ...


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container to execute in."""
    return cli.detach("--rootfs", str(rootfs), "-e", "FROM_RUN=kept", "--", *SLEEP)


@pytest.fixture(params=["run", "exec"])
def execute(request: pytest.FixtureRequest, cli: Cli, rootfs: Path) -> Execute:
    """Executes a command in a new container, and in one that runs."""
    if request.param == "exec":
        live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)

    def run(
        *command: str | bytes, options: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> Finished:
        if request.param == "run":
            where = ("run", "--rootfs", str(rootfs), "--attach", *options)
        else:
            where = ("exec", *options, live.id)
        return cli(*where, "--", *command, env=env)

    return run


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 42, 125, 126, 127, 128, 137, 254, 255])
def test_exit_code_is_the_commands(code: int, execute: Execute) -> None:
    result = execute("sh", "-c", f"exit {code}")
    assert (result.returncode, result.stdout, result.stderr) == (code, b"", b"")


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 11, 13, 15, 40])
@pytest.mark.parametrize("how", ["run --init", "exec"])
def test_a_command_killed_by_signal_n_exits_128_plus_n(
    how: str, number: int, cli: Cli, rootfs: Path
) -> None:
    # Not PID 1: that one is shielded from most signals.
    if how == "exec":
        arguments: tuple[str, ...] = ("exec", cli.detach("--rootfs", str(rootfs), "--", *SLEEP).id)
    else:
        arguments = ("run", "--init", "--attach", "--rootfs", str(rootfs))
    process = cli.start(*arguments, "--", "sh", "-c", "echo; exec sleep 1000000")
    read_line(process)
    (container_id,) = cli.ids()
    _, second = cli.live(container_id).siblings()
    os.kill(second.pid, number)
    assert process.wait() == 128 + number


def test_pid_1_killed_from_outside_exits_137(cli: Cli, rootfs: Path) -> None:
    process = cli.start("run", "--rootfs", str(rootfs), "--", *SLEEP)
    container_id = read_line(process)
    os.kill(cli.live(container_id).pid, signal.SIGKILL)
    assert process.wait() == 137
    record = cli.record(container_id)
    assert (record["exit_code"], record["signal"]) == (137, 9)


# --- commands that cannot be executed -------------------------------------------------------------


def elf(machine: int, loader: str = "") -> bytes:
    """A 64-bit little-endian ELF header, and a program header that names ``loader``."""
    interp = os.fsencode(loader) + b"\0"
    magic, dyn, pt_interp, readable = b"\x7fELF\2\1\1", 3, 3, 4
    ehdr = (magic, dyn, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    phdr = (pt_interp, readable, 120, 120, 120, len(interp), len(interp), 1)
    return struct.pack("<7s9xHHIQQQIHHHHHH", *ehdr) + struct.pack("<IIQQQQQQ", *phdr) + interp


NATIVE = {"x86_64": 0x3E, "aarch64": 0xB7}.get(os.uname().machine, 0)
FOREIGN = 0x15  # PowerPC64
UNEXECUTABLE = {
    "no execute bit": (b"#!/bin/sh\n", 0o644, "permission"),
    "script without its interpreter": (b"#!/usr/bin/python9 -u\n", 0o755, "/usr/bin/python9"),
    "script with DOS line ends": (b"#!/bin/sh\r\necho hello\r\n", 0o755, "carriage return"),
    "script with an empty interpreter": (b"#!\n", 0o755, "interpreter"),
    "script whose interpreter is a folder": (b"#!/bin\n", 0o755, "permission"),
    "text without an interpreter line": (b"echo hello\n", 0o755, "neither"),
    "empty file": (b"", 0o755, "empty"),
    "ELF of another architecture": (elf(FOREIGN), 0o755, "PowerPC64"),
    "ELF without its loader": (elf(NATIVE, "/lib/ld-gone.so"), 0o755, "loader"),
    "ELF cut short": (elf(NATIVE)[:20], 0o755, "ELF"),
    "noise": (b"\0\1\2\3" * 100, 0o755, "neither"),
}


@pytest.mark.parametrize("what", UNEXECUTABLE)
def test_what_cannot_be_executed_is_126_with_the_reason(
    what: str, execute: Execute, rootfs: Path
) -> None:
    content, mode, reason = UNEXECUTABLE[what]
    (rootfs / "bin/program").write_bytes(content)
    (rootfs / "bin/program").chmod(mode)
    for name in ("/bin/program", "program"):
        message = the_complaint(execute(name), 126)
        assert "program" in message
        assert reason in message


def test_a_directory_is_126(execute: Execute) -> None:
    for name in ("/bin", "/", ".", "/bin/"):
        assert "directory" in the_complaint(execute(name), 126)


def test_a_link_to_itself_is_126(execute: Execute, rootfs: Path) -> None:
    (rootfs / "bin/program").symlink_to("program")
    assert "symlink" in the_complaint(execute("/bin/program"), 126)


@pytest.mark.parametrize("name", ["nope", "/nope", "./nope", "/bin/nope", "/bin/sh/nope", "nope/"])
def test_what_does_not_exist_is_127(name: str, execute: Execute) -> None:
    message = the_complaint(execute(name), 127)
    assert repr(name) in message
    assert "not found" in message


def test_a_path_lookup_goes_past_what_it_may_not_execute(execute: Execute, rootfs: Path) -> None:
    # As execvp(3): a file without the execute bit does not hide one later in the PATH.
    (rootfs / "first").mkdir()
    (rootfs / "first/echo").write_text("not a program\n")
    result = execute("echo", "found", options=("-e", "PATH=/first:/bin"))
    assert (result.returncode, result.stdout) == (0, b"found\n")


def test_arguments_arrive_byte_for_byte(execute: Execute) -> None:
    words = (
        b"",
        b" ",
        b"a b",
        b"*",
        b"$HOME",
        b"--",
        b"-x",
        b"new\nline",
        b"\xff\xfe",
        "ü".encode(),
    )
    result = execute("sh", "-c", 'for a; do printf "<%s>" "$a"; done', "sh", *words)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"".join(b"<%s>" % word for word in words)


# --- environment and working directory ------------------------------------------------------------


def test_environment_is_four_defaults_and_nothing_of_the_callers(execute: Execute) -> None:
    result = execute("env", env={"SECRET_OF_THE_HOST": "1", "HOME": "/host/home"})
    found = dict(line.split("=", 1) for line in result.stdout.decode().splitlines())
    assert set(found) == {"PATH", "HOME", "HOSTNAME", "LANG"}
    assert (found["HOME"], found["LANG"]) == ("/root", "C.UTF-8")
    assert "/bin" in found["PATH"].split(":")
    assert len(found["HOSTNAME"]) == 12


def test_environment_options_add_and_override(execute: Execute) -> None:
    options = ("-e", "A=1", "--env", "B=x=y", "-e", "EMPTY=", "-e", "HOME=/h", "-e", "A=2",
               "-e", "LINES=a\nb", "-e", "ODD.NAME=1")  # fmt: skip
    result = execute("cat", "/proc/self/environ", options=options)
    found = dict(entry.split("=", 1) for entry in result.stdout.decode().split("\0") if entry)
    wanted = {"A": "2", "B": "x=y", "EMPTY": "", "HOME": "/h", "LINES": "a\nb", "ODD.NAME": "1"}
    assert {key: found.get(key) for key in wanted} == wanted


def test_command_is_looked_up_in_the_path_that_was_given(execute: Execute, rootfs: Path) -> None:
    (rootfs / "opt").mkdir()
    (rootfs / "opt/tool").write_text("#!/bin/sh\necho here\n")
    (rootfs / "opt/tool").chmod(0o755)
    assert execute("tool", options=("-e", "PATH=/opt")).stdout == b"here\n"
    assert execute("tool", options=("-e", "PATH=", "-w", "/opt")).stdout == b"here\n"
    assert execute("./tool", options=("-w", "/opt")).stdout == b"here\n"


def test_working_directory_is_the_root_or_the_one_asked_for(execute: Execute) -> None:
    assert execute("pwd").stdout == b"/\n"
    assert execute("pwd", options=("--workdir", "/tmp")).stdout == b"/tmp\n"


def test_user_may_be_given_with_group_and_home_follows(execute: Execute) -> None:
    result = execute("sh", "-c", "id -u; id -g; id -G; echo $HOME", options=("-u", "alice"))
    assert result.stdout.split() == [b"1000", b"1000", b"1000", b"50", b"/home/alice"]
    result = execute("id", "-G", options=("-u", "alice:4242"))
    assert result.stdout == b"4242\n"


# --- exec alone -----------------------------------------------------------------------------------


@pytest.mark.cgroup_v2
def test_exec_joins_every_namespace_and_cgroup(cli: Cli, live: Live) -> None:
    process = cli.start("exec", live.id, "--", "sh", "-c", "echo; exec sleep 1000000")
    read_line(process)
    first, second = live.siblings()
    assert first.pid == live.pid
    for kind in ("pid", "pid_for_children", "mnt", "uts", "ipc", "net", "cgroup"):
        assert second.namespace(kind) == first.namespace(kind)
    # Its own cgroup, by which all that it starts is found, is below the container's.
    own, theirs = second.cgroups(), first.cgroups()
    assert len(own) == len(theirs) > 0
    different = [pair for pair in zip(own, theirs, strict=True) if pair[0] != pair[1]]
    assert [below.parent for below, _ in different] == [above for _, above in different]
    assert [below.name[:5] for below, _ in different] == ["exec-"]
    assert os.stat(second.proc / "root").st_ino == os.stat(first.proc / "root").st_ino


@pytest.mark.parametrize(("user", "effective"), [("root", DEFAULT_CAPABILITIES), ("alice", 0)])
def test_exec_has_no_more_capabilities_than_run(
    user: str, effective: int, cli: Cli, live: Live
) -> None:
    # CVE-2022-29162: the inheritable set must be empty here, too.
    result = cli("exec", "-u", user, live.id, "--", "cat", "/proc/self/status")
    sets = {"CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "SigBlk", "SigIgn"}
    lines = (line.split(":\t") for line in result.stdout.decode().splitlines())
    found = {line[0]: int(line[1], 16) for line in lines if line[0] in sets}
    assert {kind: found[f"Cap{kind}"] for kind in ("Eff", "Prm", "Bnd", "Inh", "Amb")} == {
        "Eff": effective, "Prm": effective, "Bnd": DEFAULT_CAPABILITIES, "Inh": 0, "Amb": 0,
    }  # fmt: skip
    assert (found["SigBlk"], found["SigIgn"]) == (0, 0)


def test_exec_inherits_environment_and_working_directory_of_the_container(
    cli: Cli, rootfs: Path
) -> None:
    options = ("-e", "FROM_RUN=kept", "-e", "BOTH=run", "-w", "/tmp", "--hostname", "box")
    live = cli.detach("--rootfs", str(rootfs), *options, "--", *SLEEP)
    script = "echo $FROM_RUN $BOTH $PWD $HOSTNAME $(hostname)"
    result = cli("exec", "-e", "BOTH=exec", live.id, "--", "sh", "-c", script)
    assert result.stdout == b"kept exec /tmp box box\n"


def test_exec_streams_are_separate_byte_exact_and_not_logged(cli: Cli, live: Live) -> None:
    script = "printf 'a\\0b\\377'; printf 'err\\r' >&2"
    result = cli("exec", live.id, "--", "sh", "-c", script)
    assert (result.stdout, result.stderr) == (b"a\0b\xff", b"err\r")
    cli.ok("kill", live.id)
    cli.ok("wait", live.id)
    assert (cli.log(live.id), cli.log(live.id, "stderr")) == (b"", b"")


def test_exec_ends_with_its_container(cli: Cli, live: Live) -> None:
    process = cli.start("exec", live.id, "--", "sh", "-c", "echo; exec sleep 1000000")
    read_line(process)
    _, second = live.siblings()
    cli.ok("kill", live.id)
    assert process.wait() == 137
    wait_exit(second.pid)


def test_exec_killed_with_its_command_line_leaves_neither_process_nor_zombie(
    cli: Cli, live: Live
) -> None:
    process = cli.start("exec", live.id, "--", "sh", "-c", "echo; exec sleep 1000000")
    read_line(process)
    _, second = live.siblings()
    keeper = int(second.status()["PPid"])
    process.kill()
    wait_exit(second.pid)
    wait_exit(keeper)
    # Orphans come to us, as they would to PID 1: its keeper must have reaped it before it left.
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert [sibling.pid for sibling in live.siblings()] == [live.pid]


def test_exec_does_not_disturb_the_container(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    go = make_gate(rootfs / "go")
    script = "read x < /go; echo end; exit 9"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    for code in (0, 3):
        assert cli("exec", live.id, "--", "sh", "-c", f"exit {code}").returncode == code
    the_complaint(cli("exec", live.id, "--", "nope"), 127)
    go.open()
    assert cli.ok("wait", live.id) == "9\n"
    assert cli.log(live.id) == b"end\n"


def test_exec_in_a_container_that_has_ended_is_refused(cli: Cli, rootfs: Path) -> None:
    container_id = cli.ok("run", "--rootfs", str(rootfs), "--", "true").strip()
    message = cli.refused("exec", container_id, "--", "true")
    assert container_id in message
    assert "not running" in message


def test_exec_without_a_command_is_refused(cli: Cli, live: Live) -> None:
    for arguments in ((), ("--",), ("--", "")):
        assert "command" in cli.refused("exec", live.id, *arguments)
