"""The order of a launch plan is its security argument; each test is one sentence of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest

from craterun.core import flags as f
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES, capability_mask
from craterun.core.launchplan import LaunchPlan
from craterun.core.plan import command_candidates, environment
from craterun.core.spec import DEFAULT_PATH, Identity
from tests.unit.builders import (
    ID,
    LAYOUTS,
    ROOT,
    all_run_plans,
    make_exec_plan,
    make_host,
    make_run_plan,
)

RUN_PLANS = all_run_plans()
EXEC_PLANS = {
    f"exec/{name}": make_exec_plan(host=make_host(hierarchies=found))
    for name, found in LAYOUTS.items()
}
every_run_plan = pytest.mark.parametrize("plan", RUN_PLANS.values(), ids=RUN_PLANS.keys())
every_plan = pytest.mark.parametrize(
    "plan", [*RUN_PLANS.values(), *EXEC_PLANS.values()], ids=[*RUN_PLANS, *EXEC_PLANS]
)
every_exec_plan = pytest.mark.parametrize("plan", EXEC_PLANS.values(), ids=EXEC_PLANS.keys())

LEAVING = (m.PivotRoot, m.LeaveBlank)
MOUNTING = (m.CloneTree, m.NewFilesystem, m.EnterRoot, m.Attach, m.Bind, m.RemountReadonly, m.Mask)


def positions(plan: LaunchPlan, wanted: Callable[[s.Step], bool]) -> list[int]:
    found = [number for number, step in enumerate(plan.steps) if wanted(step)]
    assert found, "the plan has no such step: the test would hold for no reason"
    return found


def of(*kinds: type[s.Step]) -> Callable[[s.Step], bool]:
    return lambda step: isinstance(step, kinds)


def those(plan: LaunchPlan, *kinds: type[s.Step]) -> list[int]:
    """Where such steps are, if any: a host without version 1 cgroups has none to enter."""
    return [number for number, step in enumerate(plan.steps) if isinstance(step, kinds)]


def only(plan: LaunchPlan, *kinds: type[s.Step]) -> int:
    (found,) = positions(plan, of(*kinds))
    return found


# --- first and last -------------------------------------------------------------------------------


@every_plan
def test_the_command_is_executed_last_and_once(plan: LaunchPlan) -> None:
    assert only(plan, s.Execute) == len(plan.steps) - 1


@every_plan
def test_the_session_is_left_first(plan: LaunchPlan) -> None:
    assert only(plan, s.SetSession) == 0


@every_plan
def test_descriptors_are_closed_before_the_working_directory_is_entered(plan: LaunchPlan) -> None:
    # CVE-2024-21626: a chdir to /proc/self/fd/N reaches the host through a descriptor left open.
    assert only(plan, s.CloseDescriptors) < only(plan, s.ChangeDirectory)


@every_plan
def test_input_is_connected_before_descriptors_are_closed(plan: LaunchPlan) -> None:
    if not plan.stdin and not plan.terminal:
        assert only(plan, s.NullInput) < only(plan, s.CloseDescriptors)


def test_a_pipe_is_not_replaced_by_dev_null() -> None:
    for plan in (make_run_plan(interactive=True), make_exec_plan(stdin=True)):
        assert not any(isinstance(step, s.NullInput) for step in plan.steps)


@every_plan
def test_the_death_signal_is_set_after_the_credentials_which_would_clear_it(
    plan: LaunchPlan,
) -> None:
    assert only(plan, s.Credentials) < only(plan, s.DieWithKeeper)


@every_plan
def test_the_working_directory_is_entered_as_the_containers_user(plan: LaunchPlan) -> None:
    assert only(plan, s.Credentials) < only(plan, s.ChangeDirectory)


@every_plan
def test_every_container_gets_a_keyring_of_its_own(plan: LaunchPlan) -> None:
    assert only(plan, s.SessionKeyring) < only(plan, s.Credentials)


# --- a new container ------------------------------------------------------------------------------


@every_run_plan
def test_the_cgroup_is_entered_before_its_namespace_is_made(plan: LaunchPlan) -> None:
    # The namespace's root is the cgroup at the time of the call.
    unshare = only(plan, s.Unshare)
    assert plan.steps[unshare] == s.Unshare(f.CLONE_NEWCGROUP)
    assert all(number < unshare for number in those(plan, s.EnterCgroup))


@every_run_plan
def test_what_setting_up_takes_is_not_counted_against_the_limits(plan: LaunchPlan) -> None:
    # Opened while the host's files can be reached, entered when all is made.
    opened, entered = (those(plan, kind) for kind in (s.OpenCgroup, s.EnterCgroup))
    assert len(opened) == len(entered)
    assert all(number < leaves_the_hosts_files(plan) for number in opened)
    assert all(number > max(positions(plan, of(*MOUNTING))) for number in entered)
    assert all(number < only(plan, s.Credentials) for number in entered)


@every_run_plan
def test_no_mount_is_attached_before_propagation_is_cut(plan: LaunchPlan) -> None:
    if plan.blank:
        assert all(tree.private for tree in from_the_host(plan))
        assert only(plan, m.EnterBlank) < only(plan, m.EnterRoot)
    else:
        assert only(plan, m.PrivateMounts) < min(positions(plan, of(*MOUNTING)))


@every_run_plan
def test_the_containers_mounts_are_made_in_a_namespace_of_its_own(plan: LaunchPlan) -> None:
    made = f.CLONE_NEWNS if not plan.blank else 0
    assert plan.clone_flags & f.CLONE_NEWNS == made
    assert len(those(plan, m.EnterBlank)) == plan.blank
    attaching = (m.EnterRoot, m.Attach, m.Bind, m.RemountReadonly, m.Mask, m.Park)
    if plan.blank:
        assert only(plan, m.EnterBlank) < min(positions(plan, of(*attaching)))


def test_a_container_begins_among_the_hosts_mounts_only_where_it_has_to() -> None:
    assert {plan.blank for plan in RUN_PLANS.values()} == {True, False}
    for able in (False, True):
        for bindable in (False, True):
            root = msgspec.structs.replace(ROOT, bindable=bindable)
            plan = make_run_plan(host=make_host(blank=able), root=root)
            assert plan.blank == (able and bindable)
            assert isinstance(plan.steps[only(plan, *LEAVING)], LEAVING[plan.blank])
        assert make_run_plan(host=make_host(blank=able), root=None).blank == able
    assert not any(plan.blank for plan in EXEC_PLANS.values())


@every_run_plan
def test_the_hosts_files_are_taken_before_the_host_is_out_of_reach(plan: LaunchPlan) -> None:
    def reaches(step: s.Step) -> bool:
        match step:
            case m.CloneTree(below=-1) | m.Bind(slot=-1) | s.SetOomScore():
                return True
        return False

    assert max(positions(plan, reaches)) < leaves_the_hosts_files(plan)


@every_run_plan
def test_nothing_is_attached_before_the_root_is(plan: LaunchPlan) -> None:
    enter = only(plan, m.EnterRoot)
    assert enter < min(positions(plan, of(m.Attach, m.Bind, m.RemountReadonly, m.Mask)))


@every_run_plan
def test_all_mounts_are_made_before_the_hosts_root_is_left(plan: LaunchPlan) -> None:
    assert max(positions(plan, of(*MOUNTING))) < only(plan, *LEAVING)


@every_run_plan
def test_the_hosts_root_is_left_before_anything_is_done_in_the_containers_name(
    plan: LaunchPlan,
) -> None:
    inside = (s.SetHostname, s.LoopbackUp, s.NullInput, s.Credentials, s.ChangeDirectory, s.Execute)
    assert only(plan, *LEAVING) < min(positions(plan, of(*inside)))


@every_run_plan
def test_every_namespace_is_new_except_the_users(plan: LaunchPlan) -> None:
    assert plan.clone_flags | f.CLONE_NEWNS == (
        f.CLONE_NEWPID | f.CLONE_NEWNS | f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWNET
    )


@pytest.mark.parametrize("asked", [False, True])
def test_the_init_is_started_directly_before_the_command_if_asked_for(asked: bool) -> None:
    plan = make_run_plan(init=asked)
    assert isinstance(plan.steps[-2], s.Init) == asked
    assert sum(isinstance(step, s.Init) for step in plan.steps) == asked


def from_the_host(plan: LaunchPlan) -> list[m.CloneTree]:
    return [step for step in plan.steps if isinstance(step, m.CloneTree) and step.below < 0]


def leaves_the_hosts_files(plan: LaunchPlan) -> int:
    """From this step on, no path leads to a file of the host."""
    return only(plan, m.EnterBlank if plan.blank else m.PivotRoot)


def test_the_rootfs_is_the_directory_that_was_checked() -> None:
    plan = make_run_plan()
    (clone,) = from_the_host(plan)
    assert clone == m.CloneTree(
        op.SLOT_ROOT, b"/srv/rootfs", 0, ROOT.device, ROOT.inode, private=True
    )


def test_the_built_in_root_copies_no_directory_of_the_host_as_root() -> None:
    taken = from_the_host(make_run_plan(root=None))
    assert taken[0].source == b"/usr"
    for tree in taken:
        assert tree.slot != op.SLOT_ROOT
        assert tree.source.startswith((b"/usr", b"/etc/", b"/lib", b"/bin", b"/sbin"))
        assert tree.attributes & f.MOUNT_ATTR_RDONLY


def test_a_version_1_cgroup_is_entered_and_a_version_2_one_is_born_in() -> None:
    hybrid = make_run_plan(host=make_host(hierarchies=LAYOUTS["hybrid"]))
    joined = [step.path for step in hybrid.steps if isinstance(step, s.EnterCgroup)]
    assert joined == [
        f"/sys/fs/cgroup/memory/craterun/{ID}/tasks".encode(),
        f"/sys/fs/cgroup/cpu,cpuacct/craterun/{ID}/tasks".encode(),
    ]
    assert hybrid.cgroup == f"/sys/fs/cgroup/unified/craterun/{ID}".encode()
    assert make_run_plan(host=make_host(hierarchies=())).cgroup == b""


def test_the_plan_passes_on_who_and_what() -> None:
    identity = Identity(1000, 1001, (5, 6), "/home/alice")
    plan = make_run_plan(
        identity=identity,
        host=make_host(last_capability=37),
        interactive=True,
        workdir="/srv",
        capabilities=("KILL",),
    )
    assert (plan.owner, plan.stdin) == (1000, True)
    credentials = plan.steps[only(plan, s.Credentials)]
    assert credentials == s.Credentials(1000, 1001, (5, 6), 1 << CAPABILITIES.index("KILL"), 37)
    assert plan.steps[only(plan, s.ChangeDirectory)] == s.ChangeDirectory(b"/srv")
    assert plan.steps[only(plan, s.SetHostname)] == s.SetHostname(b"box")
    assert not make_run_plan().stdin


def test_names_that_are_not_utf_8_reach_the_kernel_as_they_were_typed() -> None:
    raw = b"/srv/\xff"
    plan = make_run_plan(workdir=os.fsdecode(raw), command=(os.fsdecode(raw), os.fsdecode(b"\xfe")))
    assert plan.steps[only(plan, s.ChangeDirectory)] == s.ChangeDirectory(raw)
    execute = plan.steps[-1]
    assert isinstance(execute, s.Execute)
    assert (execute.candidates, execute.arguments) == ((raw,), (raw, b"\xfe"))


# --- a further process ----------------------------------------------------------------------------


def test_output_that_goes_nowhere_follows_the_input() -> None:
    plan = make_exec_plan(output=False)
    assert only(plan, s.NullInput) < only(plan, s.NullOutput) < only(plan, s.CloseDescriptors)
    assert not those(make_exec_plan(), s.NullOutput)


@every_exec_plan
def test_the_cgroup_is_entered_while_its_path_still_means_something(plan: LaunchPlan) -> None:
    joined = those(plan, s.OpenCgroup, s.EnterCgroup)
    assert all(number < only(plan, s.JoinNamespaces) for number in joined)


@every_exec_plan
def test_a_further_process_joins_all_namespaces_and_makes_none(plan: LaunchPlan) -> None:
    run = make_run_plan().clone_flags | f.CLONE_NEWNS | f.CLONE_NEWCGROUP
    assert plan.steps[only(plan, s.JoinNamespaces)] == s.JoinNamespaces(run)
    assert plan.clone_flags == 0
    assert not any(isinstance(step, (*MOUNTING, s.Unshare, *LEAVING)) for step in plan.steps)


@every_exec_plan
def test_a_further_process_forks_once_inside_and_before_it_is_anybody(plan: LaunchPlan) -> None:
    fork = only(plan, s.ForkInside)
    assert fork == only(plan, s.JoinNamespaces) + 1
    assert fork < min(positions(plan, of(s.NullInput, s.CloseDescriptors, s.Credentials)))


def test_the_user_namespace_is_joined_only_where_the_container_has_one_of_its_own() -> None:
    (joined,) = [x for x in make_exec_plan(join_user=True).steps if isinstance(x, s.JoinNamespaces)]
    (usual,) = [x for x in make_exec_plan().steps if isinstance(x, s.JoinNamespaces)]
    assert joined.flags == usual.flags | f.CLONE_NEWUSER
    assert not usual.flags & f.CLONE_NEWUSER


def test_a_further_process_gets_an_input_pipe_only_if_asked_for() -> None:
    assert make_exec_plan(stdin=True).stdin
    assert not make_exec_plan().stdin


# --- who -----------------------------------------------------------------------------------------


def groups_of(plan: LaunchPlan) -> tuple[int, ...] | None:
    credentials = plan.steps[only(plan, s.Credentials)]
    assert isinstance(credentials, s.Credentials)
    return credentials.groups


def test_the_hosts_groups_are_dropped_wherever_the_kernel_lets_us() -> None:
    assert groups_of(make_run_plan()) == ()
    assert groups_of(make_exec_plan()) == (5,)


def test_groups_are_left_alone_only_where_a_user_namespace_denies_setgroups() -> None:
    mapped = make_host(user_namespace=True)
    assert groups_of(make_run_plan(host=mapped)) is None
    assert groups_of(make_run_plan(host=mapped, identity=Identity(1, 1, (7,)))) == (7,)
    assert groups_of(make_exec_plan(groups=())) == ()
    assert groups_of(make_exec_plan(groups=(), host=mapped)) is None
    assert groups_of(make_exec_plan(groups=(), join_user=True)) is None


# --- capabilities, environment, look-up -----------------------------------------------------------


def test_root_inside_keeps_no_capability_that_reaches_past_the_namespaces() -> None:
    mask = capability_mask(DEFAULT_CAPABILITIES)
    for name in (
        "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "SYS_BOOT", "SYS_TIME", "MKNOD",
        "DAC_READ_SEARCH", "NET_ADMIN", "NET_RAW", "MAC_ADMIN", "SYSLOG", "BPF", "PERFMON",
    ):  # fmt: skip
        assert not mask >> CAPABILITIES.index(name) & 1, name
    assert mask.bit_count() == len(DEFAULT_CAPABILITIES)


@pytest.mark.parametrize(
    ("name", "number"),
    [("CHOWN", 0), ("SETUID", 7), ("SYS_ADMIN", 21), ("MKNOD", 27), ("CHECKPOINT_RESTORE", 40)],
)
def test_a_capability_has_the_number_of_the_kernels_header(name: str, number: int) -> None:
    assert capability_mask((name,)) == 1 << number


def test_no_capabilities_are_an_empty_mask() -> None:
    assert capability_mask(()) == 0


def test_the_environment_has_four_defaults_which_the_user_overrides() -> None:
    identity = Identity(home="/home/alice")
    assert environment({}, identity, "box") == {
        "PATH": DEFAULT_PATH,
        "HOME": "/home/alice",
        "HOSTNAME": "box",
        "LANG": "C.UTF-8",
    }
    assert environment({"PATH": "/x", "NEW": "1"}, identity, "box") == {
        "PATH": "/x",
        "HOME": "/home/alice",
        "HOSTNAME": "box",
        "LANG": "C.UTF-8",
        "NEW": "1",
    }


@pytest.mark.parametrize(
    ("program", "path", "candidates"),
    [
        ("/bin/sh", "/x:/y", ("/bin/sh",)),
        ("./run", "/x", ("./run",)),
        ("a/b", "/x", ("a/b",)),
        ("sh", "/x:/y", ("/x/sh", "/y/sh")),
        ("sh", "/x::y", ("/x/sh", "./sh", "y/sh")),
        ("sh", "", ("./sh",)),
        ("sh", ":", ("./sh", "./sh")),
    ],
)
def test_a_program_is_looked_for_where_execvp_would(
    program: str, path: str, candidates: tuple[str, ...]
) -> None:
    assert command_candidates(program, path, "/srv") == candidates


def test_a_program_is_looked_for_in_the_path_that_the_user_gave() -> None:
    execute = make_run_plan(env={"PATH": "/opt/bin"}, command=("tool", "-v")).steps[-1]
    assert isinstance(execute, s.Execute)
    assert execute.candidates == (b"/opt/bin/tool",)
    assert execute.arguments == (b"tool", b"-v")
    assert (b"PATH", b"/opt/bin") in execute.environment
