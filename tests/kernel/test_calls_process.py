"""System calls about processes: clones, namespaces, credentials, descriptors."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from craterun.core import flags as f
from craterun.linux import calls
from tests.kernel import prepared
from tests.kernel.forked import NAMESPACES, enter_new, in_child, parked, status_field

_CLONE_FS = 0x200


def namespaces(pid: int | str = "self") -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def say_from_clone(flags: int, what: Callable[[], object]) -> Any:
    """What a child made by clone3 says, as JSON."""
    read_end, write_end = os.pipe()
    pid, pidfd = calls.clone3(flags)
    if pid == 0:
        try:
            os.write(write_end, json.dumps(what()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        said = json.load(pipe)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    return said


# --- clone3 ---------------------------------------------------------------------------------------


def test_a_clone_is_our_child_and_its_pidfd_tells_how_it_ended() -> None:
    pid, pidfd = calls.clone3(0)
    if pid == 0:
        os._exit(7)
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert result is not None
    assert (result.si_pid, result.si_code, result.si_status) == (pid, os.CLD_EXITED, 7)
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)


def test_the_child_sees_zero_and_no_pidfd() -> None:
    read_end, write_end = os.pipe()
    answer = calls.clone3(0)
    if answer[0] == 0:
        os.write(write_end, repr(answer).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        assert pipe.read() == "(0, -1)"
    os.waitpid(answer[0], 0)
    os.close(answer[1])


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_clone_is_in_those_new_namespaces_that_were_asked_for(name: str) -> None:
    ours = namespaces()
    theirs = say_from_clone(NAMESPACES[name], namespaces)
    assert {kind for kind in ours if ours[kind] != theirs[kind]} == {name}


def test_the_first_process_of_a_pid_namespace_is_number_one() -> None:
    assert say_from_clone(f.CLONE_NEWPID, os.getpid) == 1


def test_a_sibling_is_our_child_though_another_made_it() -> None:
    def make_sibling() -> int:
        pid, pidfd = calls.clone3(f.CLONE_PARENT, exit_signal=0)
        if pid == 0:
            os._exit(5)
        assert pidfd == -1
        return pid

    sibling = in_child(make_sibling)
    pid, status = os.waitpid(sibling, 0)
    assert (pid, os.waitstatus_to_exitcode(status)) == (sibling, 5)


def test_a_refused_clone_names_the_call_and_leaves_no_child() -> None:
    with pytest.raises(OSError, match="Invalid argument: 'clone3'") as caught:
        calls.clone3(f.CLONE_NEWNS | _CLONE_FS)
    assert caught.value.errno == errno.EINVAL


def test_a_clone_into_what_is_no_cgroup_is_refused() -> None:
    fd = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="'clone3'"):
        calls.clone3(0, fd)
    os.close(fd)


# --- namespaces -----------------------------------------------------------------------------------


def test_an_unshared_hostname_is_not_the_hosts() -> None:
    before = os.uname().nodename

    def rename() -> str:
        enter_new("uts")
        prepared.sethostname(b"elsewhere")
        return os.uname().nodename

    assert in_child(rename) == "elsewhere"
    assert os.uname().nodename == before


def test_a_pidfd_leads_into_several_namespaces_at_once() -> None:
    wanted = f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWNET
    with parked(lambda: calls.unshare(wanted)) as pid:

        def join() -> dict[str, str]:
            prepared.setns(os.pidfd_open(pid), wanted)
            return namespaces()

        joined, theirs, ours = in_child(join), namespaces(pid), namespaces()
    assert {kind for kind in ours if joined[kind] != ours[kind]} == {"uts", "ipc", "net"}
    assert {kind for kind in ours if joined[kind] == theirs[kind]} == set(ours)


def test_the_namespaces_of_a_dead_process_cannot_be_entered() -> None:
    with parked() as pid:
        pidfd = os.pidfd_open(pid)
    with pytest.raises(ProcessLookupError, match="'setns'"):
        prepared.setns(pidfd, f.CLONE_NEWUTS)
    os.close(pidfd)


# --- credentials and limits -----------------------------------------------------------------------


def capabilities() -> dict[str, int]:
    return {name: int(status_field(name), 16) for name in ("CapInh", "CapPrm", "CapEff")}


def test_capset_keeps_what_it_names_above_bit_31_too() -> None:
    mask = 1 << 0 | 1 << 31 | 1 << 33 | 1 << 38

    def drop() -> dict[str, int]:
        prepared.capset(mask)
        return capabilities()

    assert in_child(drop) == {"CapInh": 0, "CapPrm": mask, "CapEff": mask}
    assert capabilities()["CapEff"] > mask


def test_a_capability_that_was_given_up_does_not_come_back() -> None:
    def drop() -> None:
        prepared.capset(0)
        with pytest.raises(PermissionError, match="'capset'"):
            prepared.capset(1)

    in_child(drop)


def test_a_capability_can_be_dropped_from_the_bounding_set() -> None:
    def drop() -> tuple[int, int]:
        before = int(status_field("CapBnd"), 16)
        calls.prctl(f.PR_CAPBSET_DROP, 21)
        return before, int(status_field("CapBnd"), 16)

    before, after = in_child(drop)
    assert before & ~after == 1 << 21


def test_a_process_tied_to_its_parent_is_killed_with_it() -> None:
    def tie_a_child_and_die() -> int:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            calls.prctl(f.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.write(tell, b"!")
            signal.pause()
        assert os.read(ready, 1) == b"!"
        return pid

    # The tests' process is a subreaper: it becomes the orphan's parent.
    orphan = in_child(tie_a_child_and_die)
    _, status = os.waitpid(orphan, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_an_unknown_prctl_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="Invalid argument: 'prctl'"):
        calls.prctl(0x7FFFFFFF)


@pytest.mark.parametrize(("name", "shown"), [(b"short", "short"), (b"x" * 40, "x" * 15)])
def test_a_process_is_called_what_it_calls_itself(name: bytes, shown: str) -> None:
    def rename() -> str:
        calls.set_process_name(name)
        return status_field("Name")

    assert in_child(rename) == shown


def test_a_new_session_keyring_is_not_the_old_one() -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def session_keyring() -> int:
        get_keyring_id, session = 0, -3
        keyctl = ctypes.c_long(calls._NR_KEYCTL)
        return int(libc.syscall(keyctl, get_keyring_id, ctypes.c_long(session), 0))

    def join() -> tuple[int, int]:
        before = session_keyring()
        calls.new_session_keyring()
        return before, session_keyring()

    try:
        before, after = in_child(join)
    except AssertionError as error:
        if "Function not implemented: 'keyctl'" in str(error):
            pytest.skip("this kernel has no keyrings")
        raise
    assert after > 0
    assert before != after


# --- descriptors ----------------------------------------------------------------------------------


def test_a_range_of_descriptors_is_closed_from_the_first_on() -> None:
    def close() -> list[bool]:
        for number in (499, 500, 501, 800):
            os.dup2(0, number)
        calls.close_range(500)
        return [os.path.exists(f"/proc/self/fd/{number}") for number in (499, 500, 501, 800)]

    assert in_child(close) == [True, False, False, False]


def test_a_range_of_descriptors_is_marked_instead_if_asked_for() -> None:
    def mark() -> list[bool]:
        for number in (499, 500, 800):
            os.dup2(0, number)
        calls.close_range(500, f.CLOSE_RANGE_CLOEXEC)
        return [os.get_inheritable(number) for number in (499, 500, 800)]

    assert in_child(mark) == [True, False, False]


REFUSALS: dict[str, Callable[[], object]] = {
    "unshare": lambda: calls.unshare(1),
    "setns": lambda: prepared.setns(-1, 0),
    "mount": lambda: prepared.mount_propagation(b"/no/such/path", f.MS_PRIVATE),
    "umount2": lambda: prepared.umount2(b"/no/such/path", 0),
    "pivot_root": lambda: prepared.pivot_root(b"/no/such/path", b"/"),
    "open_tree": lambda: calls.open_tree(f.AT_FDCWD, b"/no/such/path", 0),
    "move_mount": lambda: prepared.move_mount(-1, f.AT_FDCWD, b"/"),
    "fsopen": lambda: prepared.fsopen(b"nosuchfs"),
    "fsconfig": lambda: prepared.fsconfig(-1, f.FSCONFIG_CMD_CREATE, None, None),
    "fsmount": lambda: prepared.fsmount(-1, 0),
    "mount_setattr": lambda: calls.mount_setattr(-1, 0, f.MOUNT_ATTR_RDONLY),
    "openat2": lambda: calls.openat2(f.AT_FDCWD, b"/no/such/path", os.O_RDONLY, 0),
    "inotify_add_watch": lambda: calls.inotify_add_watch(-1, b"/", 1),
    "close_range": lambda: calls.close_range(1 << 20, 1 << 30),
    "prctl": lambda: calls.prctl(f.PR_SET_PDEATHSIG, 1000),
    "sethostname": lambda: prepared.sethostname(b"x" * 65),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_an_oserror_that_names_the_call(name: str) -> None:
    with pytest.raises(OSError, match=rf"^\[Errno \d+\] .*: '{name}'$") as caught:
        REFUSALS[name]()
    assert caught.value.filename == name
    assert caught.value.strerror == os.strerror(caught.value.errno or 0)
