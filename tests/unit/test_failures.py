"""A failed launch, told as (step, errno, evidence), becomes one readable exception."""

from __future__ import annotations

import errno as e

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ContainerNotRunningError,
    CraterunError,
    KernelRefusedError,
    RootfsError,
    UsageError,
)
from craterun.core.failures import explain
from craterun.core.launchplan import LaunchPlan, Part, Template
from tests.unit.builders import HOSTILE, make_exec_plan, make_run_plan

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00"
ELF_BIG = b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02"


def plan_of(step: s.Step, call: str) -> LaunchPlan:
    """A plan of one call."""
    template = Template(0, (), ((0, call),), None, None, 0)
    return LaunchPlan((Part((step,), template, 0),), 0, b"", False, 0)


def tell(step: s.Step, errno: int, call: str = "something", evidence: bytes = b"") -> CraterunError:
    return explain(plan_of(step, call), 0, errno, evidence)


def execute(errno: int, evidence: bytes, command: bytes = b"app") -> CraterunError:
    return tell(s.Execute((b"/bin/" + command,), (command,), ()), errno, "execute", b"p" + evidence)


@pytest.mark.parametrize("errno", [e.EAGAIN, e.EMFILE, e.ENFILE, e.ENOMEM])
def test_a_command_for_which_there_is_no_room_is_not_called_unfit(errno: int) -> None:
    step = s.Execute((b"/bin/app",), (b"app",), ())
    error = explain(plan_of(step, "execute"), 0, errno, b"p/bin/app\0" + ELF, "a limit is reached")
    assert isinstance(error, KernelRefusedError)
    assert (error.errno, error.exit_code) == (errno, 125)
    assert str(error).startswith("cannot execute /bin/app: execve: ")
    assert str(error).endswith("; a limit is reached")


# --- before there is a child ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errno", "hint"),
    [
        (e.EAGAIN, "limit on processes"),
        (e.ENOMEM, "out of memory"),
        (e.ENOSPC, "limit on namespaces"),
        (e.EPERM, "not permitted here"),
        (e.EMFILE, "ulimit -n"),
    ],
)
def test_a_refused_clone_says_which_limit_it_met(errno: int, hint: str) -> None:
    error = explain(make_run_plan(), -1, errno, b"cclone3")
    assert isinstance(error, KernelRefusedError)
    assert (error.call, error.errno, error.exit_code) == ("clone3", errno, 125)
    assert str(error).startswith("cannot start a process: clone3: ")
    assert hint in str(error)


def test_a_user_that_the_namespace_does_not_map_is_told_why() -> None:
    error = explain(make_run_plan(), -1, e.EINVAL, b"cfchown")
    assert "0 is the only user and group" in str(error)
    assert "only user" not in str(explain(make_run_plan(), -1, e.EPERM, b"cfchown"))


def test_an_initramfs_is_named_where_the_first_container_cannot_leave_it() -> None:
    assert "initramfs" in str(explain(make_run_plan(), -1, e.EINVAL, b"cpivot_root"))
    assert "initramfs" not in str(explain(make_run_plan(), -1, e.EPERM, b"cpivot_root"))


def test_a_cgroup_that_could_not_be_opened_is_named() -> None:
    error = explain(make_run_plan(), -1, e.ENOENT, b"p/sys/fs/cgroup/x")
    expected = "cannot start a process: open /sys/fs/cgroup/x: No such file or directory (ENOENT)"
    assert str(error) == expected


def test_a_call_that_did_not_name_itself_leaves_no_gap_in_the_sentence() -> None:
    # os.pipe2 raises OSError without a file name; at the limit on open files it fails first.
    assert ": :" not in str(explain(make_run_plan(), -1, e.EMFILE, b"c"))


def test_a_call_that_did_not_name_itself_is_not_said_to_be_another() -> None:
    assert "fchown" not in str(explain(make_run_plan(), -1, e.EMFILE, b"c"))


def test_a_clone_that_the_kernel_cannot_do_is_not_blamed_on_the_user() -> None:
    # clone3 says EINVAL where a kind of namespace is not built in.
    assert "user" not in str(explain(make_run_plan(), -1, e.EINVAL, b"cclone3"))


def test_an_internal_error_is_told_as_one_whatever_the_step() -> None:
    for step in (-1, 0):
        error = explain(make_run_plan(), step, 0, b"xKeyError(1)")
        assert type(error) is CraterunError
        assert str(error) == "internal error while starting the container: KeyError(1)"


# --- rootfs ---------------------------------------------------------------------------------------


def test_a_rootfs_that_was_swapped_is_the_rootfs_fault() -> None:
    error = tell(m.CloneTree(0, b"/srv/x", 0, 1, 2), e.ESTALE, "open_tree")
    assert isinstance(error, RootfsError)
    assert str(error) == "rootfs /srv/x was replaced while the container was starting"


def test_a_rootfs_that_cannot_be_bound_was_not_swapped() -> None:
    error = tell(m.CloneTree(0, b"/srv/x"), e.ENOMEM, "open_tree")
    assert str(error) == (
        "cannot bind a directory: open_tree /srv/x: Cannot allocate memory (ENOMEM)"
    )
    assert isinstance(tell(m.PivotRoot(), e.ESTALE, "pivot_root"), KernelRefusedError)


TARGETS = [
    m.Attach(op.SLOT_WORK, b"proc", op.TARGET_DIRECTORY, True),
    m.Bind(op.SLOT_FILES, b"x", b"proc", op.TARGET_DIRECTORY, 0),
]


@pytest.mark.parametrize("step", TARGETS)
@pytest.mark.parametrize("errno", [e.ELOOP, e.ENOTDIR, e.EXDEV])
def test_a_mount_target_that_is_no_directory_is_the_rootfs_fault(step: s.Step, errno: int) -> None:
    error = tell(step, errno, "openat2")
    assert isinstance(error, RootfsError)
    assert "/proc is a symlink or not a directory" in str(error)
    assert "replace it by an empty directory" in str(error)


def test_a_file_is_not_mounted_on_a_directory() -> None:
    error = tell(
        m.Bind(op.SLOT_FILES, b"x", b"etc/hosts", op.TARGET_FILE, 0), e.EINVAL, "move_mount"
    )
    assert isinstance(error, RootfsError)
    assert "/etc/hosts is a directory where a file belongs" in str(error)


def test_a_mount_target_missing_on_a_read_only_rootfs_is_the_rootfs_fault() -> None:
    step = TARGETS[0]
    error = tell(step, e.ENOENT, "openat2")
    assert isinstance(error, RootfsError)
    assert "no /proc and it cannot be made there" in str(error)


def test_any_other_refusal_of_a_mount_is_the_kernels() -> None:
    error = tell(TARGETS[0], e.ENOMEM, "move_mount")
    assert str(error) == (
        "cannot mount on /proc of the container: move_mount /proc: Cannot allocate memory (ENOMEM)"
    )


# --- the working directory ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errno", "text"),
    [
        (e.ENOENT, "workdir /srv does not exist in the container"),
        (e.ENOTDIR, "workdir /srv is not a directory in the container"),
        (e.EACCES, "workdir /srv may not be entered by the container's user"),
        (e.ENAMETOOLONG, "workdir /srv: File name too long"),
    ],
)
def test_a_workdir_that_cannot_be_entered_is_the_users_mistake(errno: int, text: str) -> None:
    error = tell(s.ChangeDirectory(b"/srv"), errno, "chdir")
    assert isinstance(error, UsageError)
    assert (str(error), error.exit_code) == (text, 125)


# --- hints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "errno", "hint"),
    [
        (s.Unshare(1), e.EPERM, "lacks a capability"),
        (m.NewFilesystem(3, b"mqueue", (), 0), e.ENODEV, "built without that filesystem"),
        (m.PivotRoot(), e.EINVAL, "initramfs"),
        (m.CloneTree(0, b"/srv/x"), e.EINVAL, "on an unbindable mount"),
        (m.CloneTree(0, b"x", below=2), e.EINVAL, ""),
        (m.EnterRoot(), e.ELOOP, "a mount namespace has been mounted somewhere in it"),
        (s.OpenCgroup(0, b"/x/tasks"), e.ENOENT, "removed by somebody else"),
        (s.EnterCgroup(0, b"/x/tasks"), e.ENODEV, "removed by somebody else"),
        (s.Credentials(5, 5, None, 0, 40), e.EINVAL, "0 is the only user and group"),
        (s.Unshare(1), e.ENOSPC, ""),
        (s.LoopbackUp(), e.ENODEV, ""),
        (s.SetSession(), e.EINVAL, ""),
        (s.SetSession(), e.ENOENT, ""),
    ],
)
def test_a_refusal_gets_the_hint_that_fits_and_no_other(
    step: s.Step, errno: int, hint: str
) -> None:
    error = tell(step, errno, "something")
    assert isinstance(error, KernelRefusedError)
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)
    assert error.doing == step.doing()
    assert error.call == "something"


def test_a_container_that_ended_meanwhile_is_not_an_error_of_the_kernel() -> None:
    error = tell(s.JoinNamespaces(1), e.ESRCH, "setns")
    assert isinstance(error, ContainerNotRunningError)
    assert isinstance(tell(s.JoinNamespaces(1), e.EPERM, "setns"), KernelRefusedError)


def test_the_number_of_the_call_chooses_the_step() -> None:
    plan = make_exec_plan()
    number = 0
    for part in plan.parts:
        for step, call in part.origins:
            error = explain(plan, number, e.EIO, b"")
            number += 1
            if isinstance(error, KernelRefusedError):
                assert (error.doing, error.call) == (part.steps[step].doing(), call)
            else:
                assert isinstance(part.steps[step], s.ChangeDirectory | s.Execute)
    with pytest.raises(IndexError):
        plan.origin(number)


# --- the command ----------------------------------------------------------------------------------


def test_a_command_that_is_nowhere_is_not_found() -> None:
    error = execute(e.ENOENT, b"\0")
    assert isinstance(error, CommandNotFoundError)
    assert error.exit_code == 127
    assert str(error) == "command 'app' not found in the container's PATH"


def test_a_command_with_a_slash_was_not_looked_for_in_the_path() -> None:
    assert str(execute(e.ENOENT, b"\0", b"/opt/app")) == "command '/opt/app' not found"


@pytest.mark.parametrize(
    ("errno", "head", "why"),
    [
        (e.ENOENT, b"#!/opt/python -u\n", "its interpreter /opt/python does not exist"),
        (e.ENOENT, b"#! /opt/python\n", "its interpreter /opt/python does not exist"),
        (e.ENOENT, b"#!\n", "empty"),
        (e.ENOENT, b"#!/bin/sh\r\necho hi\r\n", "carriage return"),
        (e.ENOENT, ELF + b"\x3e\x00", "dynamic loader.*ELF for x86-64"),
        (e.ENOENT, b"", "No such file or directory"),
        (e.ENOEXEC, ELF + b"\xb7\x00", "an ELF file for AArch64"),
        (e.ENOEXEC, ELF_BIG + b"\x00\x16", "an ELF file for s390"),
        (e.ENOEXEC, ELF + b"\x34\x12", "machine number 4660"),
        (e.ENOEXEC, b"\x7fELF", "an ELF file for machine number 0"),
        (e.ENOEXEC, b"", "the file is empty"),
        (e.ENOEXEC, b"hello", "neither an ELF file nor a script"),
        (e.EACCES, b"", "permission denied"),
        (e.E2BIG, b"", "argument list too long"),
        (e.ETXTBSY, b"", "open for writing"),
        (e.ELOOP, b"", "too many levels"),
        (e.EIO, b"", "Input/output error"),
    ],
)
def test_a_command_that_does_not_execute_says_why(errno: int, head: bytes, why: str) -> None:
    error = execute(errno, b"/bin/app\0" + head)
    assert isinstance(error, CommandNotExecutableError)
    assert error.exit_code == 126
    assert str(error).startswith("cannot execute /bin/app: ")
    with pytest.raises(CommandNotExecutableError, match=why):
        raise error


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (3, "i386"), (8, "MIPS"), (0x15, "PowerPC64"), (0x16, "s390"), (0x28, "ARM"),
        (0x3E, "x86-64"), (0xB7, "AArch64"), (0xF3, "RISC-V"), (0x102, "LoongArch"),
    ],
)  # fmt: skip
def test_a_foreign_program_is_told_by_its_machine_in_either_byte_order(
    number: int, name: str
) -> None:
    for head, order in ((ELF, "little"), (ELF_BIG, "big")):
        machine = number.to_bytes(2, "little" if order == "little" else "big")
        error = execute(e.ENOEXEC, b"/bin/app\0" + head + machine + b"\x01\0\0\0")
        assert f"an ELF file for {name}, which" in str(error)


# --- anything -------------------------------------------------------------------------------------

_HOSTILE_STEPS = [
    s.OpenCgroup(0, HOSTILE),
    m.CloneTree(0, HOSTILE),
    m.NewFilesystem(0, HOSTILE, (), 0),
    m.Attach(0, HOSTILE, 0, True),
    m.Bind(0, HOSTILE, HOSTILE, 0, 0),
    m.Mask(HOSTILE, False),
    s.ChangeDirectory(HOSTILE),
    s.JoinNamespaces(0),
    s.SetHostname(HOSTILE),
    s.Execute((HOSTILE,), (HOSTILE,), ()),
]


@given(
    st.sampled_from(_HOSTILE_STEPS),
    st.sampled_from(sorted(e.errorcode)) | st.integers(0, 65535),
    st.one_of(
        st.just(b""),
        st.binary().map(lambda data: b"p" + data),
        st.binary().map(lambda data: b"x" + data),
        st.binary().map(lambda data: b"p/bin/x\0#!" + data),
        st.binary().map(lambda data: b"p/bin/x\0\x7fELF" + data),
        st.sampled_from([b"cclone3", b"copenat2", b"c"]),
    ),
    st.sampled_from([-1, 0]),
)
def test_whatever_the_child_reports_becomes_one_printable_sentence(
    step: s.Step, errno: int, evidence: bytes, number: int
) -> None:
    error = explain(plan_of(step, "call"), number, errno, evidence)
    assert str(error)
    assert str(error).isprintable()
    assert error.exit_code in (125, 126, 127)


def test_a_fork_that_the_containers_limit_refuses_says_which_limit() -> None:
    for step in (s.ForkInside(), s.Init()):
        assert "limit on processes" in str(tell(step, e.EAGAIN))
