"""Machine code in place of a Python child: each kind of call, and every way to fail."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from craterun.core import native as n
from craterun.core import opcodes as op
from craterun.core.assembler import Assembler
from craterun.keeper.native import COMMON, Native, UnavailableError, make_native
from craterun.linux import memory
from tests.kernel.forked import in_child
from tests.kernel.prepared import prepared

pytestmark = pytest.mark.skipif(not n.SUPPORTED, reason="no machine code for this machine")
_LIMITS = (1024, 4096)


class Launcher:
    """A `Native` as the keeper has it. Lives in a process of its own, see `carried_out`."""

    def __init__(self) -> None:
        # The keeper has nothing on the numbers that its children use.
        self.high = 200
        self.native = Native(_LIMITS)

    def pipe(self) -> tuple[int, int]:
        ends = []
        for end in os.pipe():
            self.high += 1
            ends.append(os.dup2(end, self.high, inheritable=False))
            os.close(end)
        return ends[0], ends[1]

    def start(
        self, assembler: Assembler, *values: Any, number: int = 0, table: bool = False
    ) -> tuple[int, int, int]:
        """(pidfd, slot, what reads the error pipe) of a child that makes these calls.

        :param table: it begins with our table of descriptors, and has one of its own by now
        """
        code = n.translate(assembler.calls)
        assert code is not None
        error, theirs = self.pipe()
        out = os.open("/dev/null", os.O_RDWR)
        high = os.dup2(out, 150, inheritable=False)
        os.close(out)
        _, pidfd, slot = self.native.start(
            [(number, code)], values, (-1, high, high), theirs, 0, -1, table
        )
        if table:
            assert os.read(error, 1) == bytes((op.RECORD_TABLE,))
        os.close(theirs)
        return pidfd, slot, error

    def run(self, assembler: Assembler, *values: Any) -> tuple[int, Any]:
        """(exit code of what it executed, or of itself; how it failed)."""
        pidfd, slot, error = self.start(assembler, *values)
        assert os.read(error, 1) == b"", "the error pipe has no end"
        executing, failure = self.native.finish(slot)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        assert executing or failure, "it neither executed anything nor failed"
        return result.si_status, failure


def program() -> Assembler:
    return Assembler({}, n.FIRST_VALUE)


def execute(assembler: Assembler, *command: bytes, path: bytes = b"/bin/sh") -> list[Any]:
    """End ``assembler`` by executing that; the values it needs."""
    candidates = (assembler.own(0),)
    assembler.special("execute", candidates, assembler.own(1), assembler.own(2))
    return [path, (path, *command), (b"GREETING=hello", b"EMPTY=")]


def carried_out(build: Any) -> Any:
    """What ``build(launcher)`` returns, in a process that may lose its memory in forks."""
    return in_child(lambda: build(Launcher()))


# --- what works -----------------------------------------------------------------------------------


def test_a_program_is_executed_with_its_arguments_and_its_environment() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        script = (
            b'test "$1" = "two words" && test "$GREETING" = hello && test -z "$EMPTY" && exit 7'
        )
        values = execute(p, b"-c", script, b"sh", b"two words")
        return launcher.run(p, *values)

    assert carried_out(build) == (7, None)


def test_the_next_file_is_tried_where_there_is_none() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        candidates = tuple(p.own(place) for place in range(3))
        p.special("execute", candidates, p.own(3), p.own(4))
        found = [b"/nowhere/sh", b"/bin/sh/sh", b"/bin/sh"]
        return launcher.run(p, *found, (b"sh", b"-c", b"exit 3"), ())

    assert carried_out(build) == (3, None)


def test_it_has_nothing_open_but_its_streams() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        script = b'for fd in /proc/self/fd/*; do echo "${fd##*/}"; done | wc -l'
        count = b"exit $(%b)" % script
        return launcher.run(p, *execute(p, b"-c", count))

    # 0, 1 (a pipe of the shell's) and 2, and what the shell has the directory open on: gone again.
    status, failure = carried_out(build)
    assert failure is None
    assert status <= 4


def test_of_the_table_of_its_parent_it_takes_along_what_it_needs() -> None:
    def build(launcher: Launcher) -> Any:
        gone, held = os.pipe()
        for number in range(COMMON, COMMON + 300):
            os.dup2(held, number)
        os.close(held)
        hangs = program()
        hangs.call("poll", None, 0, -1)
        pidfd, slot, error = launcher.start(hangs, table=True)
        (pid,) = Path("/proc/thread-self/children").read_text().split()
        while sorted(os.listdir(f"/proc/{pid}/fd"), key=int) != ["0", "1", "2", "3"]:
            os.sched_yield()
        for number in range(COMMON, COMMON + 300):
            os.close(number)  # fails if it is no longer there
        assert os.read(gone, 1) == b"", "somebody else has the pipe"
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert os.read(error, 1) == b""
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        return launcher.native.finish(slot)

    assert carried_out(build) == (0, None)


def test_the_limit_on_open_files_is_that_of_the_process_to_be() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        script = b'test "$(ulimit -Sn) $(ulimit -Hn)" = "1024 4096"'
        return launcher.run(p, *execute(p, b"-c", script))

    assert carried_out(build) == (0, None)


def test_a_value_is_written_at_its_own_length(tmp_path: Path) -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        p.call("openat", -100, path, flags, 0o600, wanted=4)
        p.call("write", 4, p.own(), p.length(), wanted=p.length())
        p.call("close", 4)
        p.values += 1
        return launcher.run(p, text, *execute(p, b"-c", b"exit 0"))

    path, text = os.fsencode(tmp_path / "file"), b"zero \0 and\nall"
    assert carried_out(build) == (0, None)
    assert (tmp_path / "file").read_bytes() == text


def test_a_lenient_call_leaves_out_what_depends_on_it() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("chdir", b"/nowhere")
        with p.if_it_worked(20, 2):
            p.call("chdir", b"/nowhere/either")
            p.special("check_inside")
        p.call("chdir", b"/nowhere")
        p.tolerate()
        p.call("umask", 0o22, wanted=None)
        return launcher.run(p, *execute(p, b"-c", b"exit 5"))

    assert carried_out(build) == (5, None)


def test_a_directory_is_told_by_device_and_inode() -> None:
    about = os.stat("/usr")

    def build(launcher: Launcher) -> Any:
        results = []
        for inode in (about.st_ino, about.st_ino + 1):
            p = program()
            p.call("openat", -100, b"/usr", os.O_RDONLY, wanted=4)
            p.special("check_directory", 4, about.st_dev, inode)
            results.append(launcher.run(p, *execute(p, b"-c", b"exit 0")))
            launcher.native.forget_parts()
        return results

    right, wrong = carried_out(build)
    assert right == (0, None)
    assert wrong[0] == 125
    assert wrong[1][:2] == (op.NATIVE_FAILED, 116)


def test_a_keyring_and_a_directory_inside_are_no_failure() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.special("session_keyring")
        p.special("check_inside")
        return launcher.run(p, *execute(p, b"-c", b"exit 0"))

    assert carried_out(build) == (0, None)


# --- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lenient", "errno"), [(None, 2), ((20,), 2), ((13, 20), 2)], ids=["strict", "one", "two"]
)
def test_a_call_that_fails_ends_the_child_with_its_number(
    lenient: tuple[int, ...] | None, errno: int
) -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("umask", 0, wanted=None)
        p.call("chdir", b"/nowhere")
        if lenient:
            p.tolerate(*lenient)
        return launcher.run(p, *execute(p, b"-c", b"exit 0"))

    status, (kind, found, made) = carried_out(build)
    assert status == 125
    assert (kind, found) == (op.NATIVE_FAILED, errno)
    opening = 6  # dup2 twice, dup3, close_range, setrlimit, umask
    assert int(made) == opening + 2


def test_a_result_that_is_not_the_wanted_one_is_a_failure() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("openat", -100, b"/dev/null", os.O_RDONLY, wanted=5)  # it will be 4
        return launcher.run(p, *execute(p, b"-c", b"exit 0"))

    assert carried_out(build)[0] == 125


@pytest.mark.parametrize("path", [b"/nowhere", b"/etc/passwd", b"/etc"])
def test_what_cannot_be_executed_is_a_failure(path: bytes) -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        return launcher.run(p, *execute(p, path=path))

    status, failure = carried_out(build)
    assert status == 125
    assert failure is not None


def test_a_plan_without_a_command_is_a_failure() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("umask", 0, wanted=None)
        return launcher.run(p)

    assert carried_out(build)[0] == 125


def test_a_namespace_that_cannot_be_is_an_error_of_clone() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        code = n.translate(p.calls)
        try:
            launcher.native.start([(0, code)], (), (-1, 1, 2), 2, 0x10000 | 0x20000000, -1)
        except OSError as error:  # a thread, and a pid namespace of its own
            return error.errno, error.filename
        return None

    assert carried_out(build) == (22, "clone3")


# --- the arena ------------------------------------------------------------------------------------


def test_one_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    fifo = os.fsencode(tmp_path / "fifo")
    os.mkfifo(fifo)

    def build(launcher: Launcher) -> Any:
        slow = program()
        slow.call("openat", -100, fifo, os.O_RDONLY, wanted=4)  # until somebody writes
        pidfd, slot, error = launcher.start(slow, *execute(slow, b"-c", b"exit 9"), number=1)
        others = []
        for number in range(5):
            launcher.native.forget_parts()
            quick = program()
            others.append(launcher.run(quick, *execute(quick, b"-c", b"exit %d" % number)))
        assert not select.select([error], [], [], 0)[0], "it did not wait"
        os.close(os.open(fifo, os.O_WRONLY))
        assert os.read(error, 1) == b""
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        return others, result.si_status, launcher.native.finish(slot)[1]

    others, status, failure = carried_out(build)
    assert others == [(number, None) for number in range(5)]
    assert (status, failure) == (9, None)


def test_one_that_is_killed_on_the_way_has_neither_failed_nor_executed_anything() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("poll", None, 0, -1)  # for ever
        pidfd, slot, error = launcher.start(p)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert os.read(error, 1) == b""
        return launcher.native.finish(slot)

    assert carried_out(build) == (0, None)


def test_without_room_it_is_pythons_turn() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        values = execute(p, b"x" * n.SLOT_BYTES)
        code = n.translate(p.calls)
        results = []
        for parts, own in (
            ([(0, code)], values),
            ([(5, None)], ()),
            ([(number, code) for number in range(n.MAX_PARTS)], ()),
        ):
            try:
                launcher.native.start(parts, own, (-1, 1, 2), 2, 0, -1)
            except UnavailableError as error:
                results.append(error.args[0])
        # None of them has kept a slot.
        return results, len(launcher.native._free)

    assert carried_out(build) == ([op.NOW] * 3, 64)


def test_a_child_has_none_of_the_keepers_memory() -> None:
    def build(launcher: Launcher) -> Any:
        p = program()
        p.call("poll", None, 0, -1)
        pidfd, _, _ = launcher.start(p)
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
        with open(f"/proc/{pid}/maps") as file:
            maps = file.read()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return maps

    lines = carried_out(build).splitlines()
    names = {line.split(maxsplit=5)[5] for line in lines if len(line.split()) > 5}
    kernels = {"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"}
    assert names <= {"/dev/zero (deleted)", *kernels}, lines
    assert len(lines) <= 6
    modes = [line.split()[1] for line in lines]
    assert not any("w" in mode and "x" in mode for mode in modes)


def test_python_children_get_all_memory_but_the_arena() -> None:
    def build(launcher: Launcher) -> Any:
        launcher.native.whole_forks()
        text = "this is in memory that was left out of forks"
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with open("/proc/self/maps", "rb") as file:
                os.write(write, text.split(maxsplit=1)[0].encode() + b"\n" + file.read())
            os._exit(0)
        launcher.native.bare_forks()
        os.close(write)
        with open(read, "rb") as pipe:
            said, maps = pipe.read().split(b"\n", 1)
        os.waitpid(pid, 0)
        return said, f"{launcher.native._base:x}-".encode() in maps

    # The init of --init is such a child, and stays: a container could look into what it shares.
    assert carried_out(build) == (b"this", False)


def test_where_memory_may_not_become_executable_there_is_no_machine_code() -> None:
    def build() -> Any:
        prepared("prctl", 65, 1, 0, 0, 0)  # PR_SET_MDWE, Linux 6.3
        return make_native(_LIMITS)

    assert in_child(build) is None


def test_a_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(op.SWITCH, "0")
    assert make_native(_LIMITS) is None


def test_executable_memory_is_not_writable() -> None:
    address, size = memory.executable(b"\xc3")
    with open("/proc/self/maps") as file:
        line = next(line for line in file if line.startswith(f"{address:08x}-"))
    assert line.split()[1] == "r-xp"
    assert size % 4096 == 0
