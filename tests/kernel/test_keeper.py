"""A keeper starts alone, keeps to itself, and ends with its supervisor."""

from __future__ import annotations

import errno
import marshal
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.core import opcodes as op
from craterun.core.errors import CraterunError, KernelRefusedError
from craterun.keeper import spawn, wire
from craterun.keeper.child import LOWEST_FD
from craterun.keeper.spawn import SpawnedKeeper, spawn_keeper
from craterun.linux import calls
from tests.kernel import prepared
from tests.kernel.forked import in_child, status_field
from tests.unit.builders import no_leaked_descriptors

_SECONDS = 30
NOTHING_KEPT = (op.MSG_ADOPTED, -1)


def ask(keeper: SpawnedKeeper) -> object:
    """What the keeper keeps. It answers when it has come up, so this waits for that."""
    data, _ = wire.encode((op.MSG_ADOPT,))
    keeper.socket.sendall(data)
    received = wire.receive(keeper.socket, bytearray(wire.INLINE_BYTES + 1))
    assert received is not None, "the keeper is gone"
    message, fds = received
    assert fds == []
    return message


@pytest.fixture
def keeper() -> Iterator[SpawnedKeeper]:
    """A keeper that has come up."""
    started = spawn_keeper()
    started.socket.settimeout(_SECONDS)
    try:
        assert ask(started) == NOTHING_KEPT
        yield started
    finally:
        started.socket.close()
        started.process.kill()
        started.process.wait()


def proc(keeper: SpawnedKeeper, name: str) -> str:
    return f"/proc/{keeper.process.pid}/{name}"


def descriptors(keeper: SpawnedKeeper) -> dict[int, str]:
    return {
        int(name): os.readlink(f"{proc(keeper, 'fd')}/{name}")
        for name in os.listdir(proc(keeper, "fd"))
    }


# --- the end --------------------------------------------------------------------------------------


def test_a_keeper_ends_well_when_its_supervisor_is_gone(keeper: SpawnedKeeper) -> None:
    keeper.socket.close()
    assert keeper.process.wait(_SECONDS) == 0


def test_a_keeper_that_was_never_used_can_be_closed() -> None:
    with no_leaked_descriptors():
        keeper = spawn_keeper()
        keeper.close()
        assert keeper.process.returncode == 0


def test_a_keeper_goes_on_until_then(keeper: SpawnedKeeper) -> None:
    for _ in range(3):
        assert ask(keeper) == NOTHING_KEPT
    assert keeper.process.poll() is None


_PLAN = ((), None, 0, b"", False, 0, False, False)
_NATIVE = ((), (), 0, b"", False, 0, False, False)
_PART = (0, (bytes(72), b"\0\0\0"))
GARBAGE = {
    "no type": b"?",
    "undecodable": b"I\xff\xff",
    "a memfd that is not there": b"M",
    "not a tuple": b"I" + marshal.dumps([op.MSG_ADOPT]),
    "empty": b"I" + marshal.dumps(()),
    "unknown": b"I" + marshal.dumps((99,)),
    "one of its own": b"I" + marshal.dumps(NOTHING_KEPT),
    "a string": b"I" + marshal.dumps(("launch",)),
    "a launch of nothing": b"I" + marshal.dumps((op.MSG_LAUNCH,)),
    "a launch of a number": b"I" + marshal.dumps((op.MSG_LAUNCH, 0, 0, b"", 5, [])),
    "a release of nothing": b"I" + marshal.dumps((op.MSG_RELEASE,)),
    "a launch without its pidfd": b"I" + marshal.dumps((op.MSG_LAUNCH, 0, 1, b"", _PLAN, [])),
    "machine code that is none": b"I"
    + marshal.dumps((op.MSG_LAUNCH, 0, 0, b"", ((_PART,), *_NATIVE[1:]), [])),
    "a part that is none": b"I"
    + marshal.dumps((op.MSG_LAUNCH, 0, 0, b"", ((5,), *_NATIVE[1:]), [])),
    "cut off": wire.encode((op.MSG_LAUNCH, 0, 0, b"", (), []))[0][:-3],
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_garbage_message_ends_a_keeper_that_keeps_nothing(
    keeper: SpawnedKeeper, data: bytes
) -> None:
    keeper.socket.sendall(data)
    assert keeper.socket.recv(1) == b"", "it answered"
    # 1 would be an exception that nobody expected: containers for a successor would be lost.
    assert keeper.process.wait(_SECONDS) == 0


def test_descriptors_that_nobody_asked_for_end_a_keeper_too(keeper: SpawnedKeeper) -> None:
    keeper.socket.sendmsg([wire.encode((op.MSG_ADOPT,))[0]], wire.ancillary([0] * 100))
    assert keeper.process.wait(_SECONDS) == 0


# --- the interpreter (CVE-2019-5736) --------------------------------------------------------------


def test_the_file_that_a_keeper_runs_is_the_interpreter(keeper: SpawnedKeeper) -> None:
    assert os.path.samefile(proc(keeper, "exe"), sys.executable)


def test_the_interpreter_cannot_be_written_to_through_a_keeper(keeper: SpawnedKeeper) -> None:
    with pytest.raises(OSError, match="exe") as caught:
        os.close(os.open(proc(keeper, "exe"), os.O_WRONLY))
    assert caught.value.errno in (errno.EROFS, errno.ETXTBSY)


def test_the_interpreters_mount_is_read_only_for_a_keeper(keeper: SpawnedKeeper) -> None:
    # ETXTBSY protects it only as long as somebody runs it.
    fd = os.open(proc(keeper, "exe"), os.O_PATH)
    assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
    os.close(fd)
    mode = os.stat(sys.executable).st_mode & 0o7777
    with pytest.raises(OSError, match="exe") as caught:
        os.chmod(proc(keeper, "exe"), mode)  # to what it is: no harm if it succeeds
    assert caught.value.errno == errno.EROFS
    assert not os.statvfs(os.path.realpath(sys.executable)).f_flag & os.ST_RDONLY, (
        "it is read-only anyway: this test shows nothing"
    )


# --- alone ----------------------------------------------------------------------------------------


def test_a_keeper_has_no_streams_of_the_user(keeper: SpawnedKeeper) -> None:
    found = descriptors(keeper)
    assert [found[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_a_keeper_inherits_nothing_but_its_socket_and_the_interpreter(
    tmp_path: Path,
) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    keeper = spawn_keeper()
    try:
        keeper.socket.settimeout(_SECONDS)
        ask(keeper)
        found = descriptors(keeper)
    finally:
        keeper.close()
        os.close(secret)
    assert {found[number] for number in range(LOWEST_FD)} == {os.devnull}
    rest = sorted(target.split(":")[0] for number, target in found.items() if number >= LOWEST_FD)
    interpreter = os.path.realpath(sys.executable)
    assert set(rest) <= {"anon_inode", "socket", interpreter, "/"}, rest
    assert rest.count("socket") == 1
    assert str(tmp_path) not in found.values()


def test_a_keeper_is_in_a_session_of_its_own(keeper: SpawnedKeeper) -> None:
    assert os.getsid(keeper.process.pid) == keeper.process.pid
    assert os.getsid(keeper.process.pid) != os.getsid(0)


def test_a_keeper_has_default_signals_whatever_its_supervisor_had() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        keeper = spawn_keeper()
    finally:
        signal.signal(signal.SIGUSR2, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        keeper.socket.settimeout(_SECONDS)
        ask(keeper)
        pid = keeper.process.pid
        masks = {name: int(status_field(name, pid), 16) for name in ("SigBlk", "SigIgn", "SigCgt")}
    finally:
        keeper.close()
    assert masks == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_a_keeper_holds_no_directory_busy(keeper: SpawnedKeeper) -> None:
    assert os.readlink(proc(keeper, "cwd")) == "/"


def test_a_keeper_can_be_told_in_a_process_list(keeper: SpawnedKeeper) -> None:
    assert Path(proc(keeper, "comm")).read_text() == "craterun-keeper\n"


def test_a_keeper_has_one_thread(keeper: SpawnedKeeper) -> None:
    assert len(os.listdir(proc(keeper, "task"))) == 1


def test_containers_cannot_look_into_a_keeper(keeper: SpawnedKeeper) -> None:
    # CVE-2016-9962. The kernel gives the files of a process that is not dumpable to root: where
    # that is the owner anyway, a user without capabilities shows the difference.
    def look() -> int | None:
        prepared.capset(0)
        try:
            os.readlink(proc(keeper, "exe"))
        except OSError as error:
            return error.errno
        return None

    assert in_child(look) == errno.EACCES


def test_nothing_that_a_user_planted_is_imported_by_a_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    for name in ("select", "sitecustomize", "fcntl", "craterun"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "select.py"))
    monkeypatch.chdir(tmp_path)
    keeper = spawn_keeper()
    try:
        keeper.socket.settimeout(_SECONDS)
        assert ask(keeper) == NOTHING_KEPT
    finally:
        keeper.close()
    assert not marker.exists()
    code = "import select"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert marker.exists(), "the planted module is no threat: this test shows nothing"


# --- failures -------------------------------------------------------------------------------------


def test_a_keeper_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with no_leaked_descriptors(), monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(KernelRefusedError, match=r"start the keeper: .*a limit on processes"):
            spawn_keeper()


def test_a_kernel_without_mount_setattr_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before Linux 5.12. The keeper is started before anybody has looked at the kernel's version.
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "mount_setattr")

    opened: list[socket.socket] = []
    pair = socket.socketpair

    def watched(*arguments: int) -> tuple[socket.socket, socket.socket]:
        made = pair(*arguments)
        opened.extend(made)
        return made

    keeper = None
    try:
        with no_leaked_descriptors(), monkeypatch.context() as patch:
            patch.setattr(calls, "mount_setattr", refuse)
            patch.setattr(socket, "socketpair", watched)
            try:
                keeper = spawn_keeper()
            except (OSError, CraterunError):
                pass
            else:
                keeper.close()
    finally:
        for sock in opened:
            sock.close()


def test_without_a_mount_of_its_own_the_interpreter_is_run_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without CAP_SYS_ADMIN, as in a user namespace yet to come.
    monkeypatch.setattr(spawn, "_readonly_interpreter", lambda: -1)
    with no_leaked_descriptors():
        keeper = spawn_keeper()
        keeper.socket.settimeout(_SECONDS)
        assert ask(keeper) == NOTHING_KEPT
        keeper.close()
        assert keeper.process.returncode == 0
