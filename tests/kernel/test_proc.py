"""A process is told from another one that has its number: by start time and boot."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from craterun.core.life import Process
from craterun.linux.proc import boot_id, is_alive, is_exiting, open_process
from tests.kernel.forked import in_child, parked, start_time

_NR_EXIT = {"x86_64": 60}.get(os.uname().machine, 93)


def named(pid: int) -> Process:
    """The process that has number ``pid`` now."""
    return Process(pid, start_time(pid), boot_id())


def refuse(process: Process) -> None:
    """``process`` is neither alive nor can it be opened."""
    before = set(os.listdir("/proc/self/fd"))
    assert not is_alive(process)
    with pytest.raises(ProcessLookupError) as caught:
        open_process(process)
    assert (caught.value.errno, caught.value.filename) == (errno.ESRCH, str(process.pid))
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_boot_is_the_kernels() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(boot_id()) == 36


def test_a_running_process_is_alive_and_can_be_signalled() -> None:
    with parked() as pid:
        process = named(pid)
        assert is_alive(process)
        pidfd = open_process(process)
        assert not os.get_inheritable(pidfd)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert result is not None
        assert (result.si_pid, result.si_status) == (pid, signal.SIGTERM)
        os.close(pidfd)


def test_a_stopped_process_is_alive() -> None:
    with parked() as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert is_alive(named(pid))
        os.kill(pid, signal.SIGCONT)


def test_a_process_that_was_reaped_is_gone() -> None:
    with parked() as pid:
        process = named(pid)
    refuse(process)


def test_a_zombie_is_dead() -> None:
    with parked() as pid:
        process = named(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        refuse(process)


@pytest.mark.parametrize("later", [-1, 1, 1000])
def test_a_reused_pid_is_not_taken_for_the_process(later: int) -> None:
    with parked() as pid:
        process = named(pid)
        refuse(process._replace(start_time=process.start_time + later))
        assert is_alive(process)


@pytest.mark.parametrize("other", ["", "00000000-0000-4000-8000-000000000000", "\0"])
def test_a_process_of_another_boot_is_gone(other: str) -> None:
    refuse(named(os.getpid())._replace(boot_id=other))


@pytest.mark.parametrize("left", [0, 1])
def test_a_lack_of_descriptors_is_not_taken_for_the_end_of_a_process(left: int) -> None:
    # `rm` removes what has ended: an error must not look like an end.
    with parked() as pid:
        process = named(pid)

        def look() -> list[int | None]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            before = os.listdir("/proc/self/fd")
            held: list[int] = []
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                for fd in held[:left]:
                    os.close(fd)
            found: list[int | None] = []
            for function in (open_process, is_alive):
                try:
                    found.append(int(function(process)))
                except OSError as error:
                    found.append(error.errno)
            for fd in held[left:]:
                os.close(fd)
            assert os.listdir("/proc/self/fd") == before
            return found

        assert in_child(look) == [errno.EMFILE] * 2


@contextmanager
def another_thread() -> Iterator[int]:
    """Number of a second thread of this process."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        yield thread.native_id
    finally:
        end.set()
        thread.join()


def test_a_pid_reused_for_a_thread_is_not_taken_for_the_process() -> None:
    # Threads and processes share their numbers; pidfd_open refuses a thread's, with an errno of
    # its own that depends on the kernel.
    with another_thread() as number:
        refuse(Process(number, 1, boot_id()))


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31, 2**64, 10**30])
def test_a_number_that_no_process_can_have_is_nobody(pid: int) -> None:
    # metadata.json may hold anything.
    refuse(Process(pid, 1, boot_id()))


def _state(pid: int | str) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def _leave_a_thread_behind(tell: int) -> None:
    """For a child: end the first thread, go on in a second one, and tell when that is so."""

    def stay() -> None:
        while _state("self") != "Z":  # of the thread group's leader, which is about to end
            pass
        os.write(tell, b"!")
        signal.pause()

    threading.Thread(target=stay).start()
    ctypes.CDLL(None).syscall(_NR_EXIT, 0)


def test_what_has_ended_is_exiting_reaped_or_not() -> None:
    assert not is_exiting(os.getpid())
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_exiting(pid)
    os.waitpid(pid, 0)
    assert is_exiting(pid)


def test_a_process_whose_first_thread_has_ended_is_alive() -> None:
    # proc(5) shows it as a zombie; its other threads run on, and so does the container.
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _leave_a_thread_behind(tell)
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"!"
        assert _state(pid) == "Z"
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it can be reaped: it has ended after all"
        process = named(pid)
        assert is_alive(process)
        os.close(open_process(process))
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
