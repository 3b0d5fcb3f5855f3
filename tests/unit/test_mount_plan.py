"""What is mounted in a container, with which flags, and in which order."""

from __future__ import annotations

import pytest

from craterun.core import flags as f
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.launchplan import LaunchPlan
from craterun.core.mounts import etc_files
from tests.unit.builders import all_run_plans, make_host, make_run_plan

PLANS = all_run_plans()
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
ROOTFS_PLANS = {name: plan for name, plan in PLANS.items() if name.startswith("rootfs/")}
every_rootfs_plan = pytest.mark.parametrize("plan", ROOTFS_PLANS.values(), ids=ROOTFS_PLANS.keys())
DEVICES = (
    (b"null", 1, 3), (b"zero", 1, 5), (b"full", 1, 7), (b"random", 1, 8), (b"urandom", 1, 9),
    (b"tty", 5, 0),
)  # fmt: skip
"""As devices.txt of the kernel's documentation has them."""

_NOSUID, _NODEV, _NOEXEC = f.MOUNT_ATTR_NOSUID, f.MOUNT_ATTR_NODEV, f.MOUNT_ATTR_NOEXEC


def last(plan: LaunchPlan, *kinds: type[s.Step]) -> int:
    return max(n for n, step in enumerate(plan.steps) if isinstance(step, kinds))


def first(plan: LaunchPlan, *kinds: type[s.Step]) -> int:
    return min(n for n, step in enumerate(plan.steps) if isinstance(step, kinds))


def filesystems(plan: LaunchPlan) -> list[m.NewFilesystem]:
    return [step for step in plan.steps if isinstance(step, m.NewFilesystem)]


# --- order ----------------------------------------------------------------------------------------


@every_rootfs_plan
def test_etc_files_are_covered_before_anything_of_ours_is_attached(plan: LaunchPlan) -> None:
    # A hostile /etc/hosts could be a symlink into /proc: there must not be one yet.
    covered = [
        number
        for number, step in enumerate(plan.steps)
        if isinstance(step, m.Bind) and step.path.startswith(b"etc/")
    ]
    assert len(covered) == 3
    assert max(covered) < first(plan, m.Attach)


@every_plan
def test_masks_come_after_every_mount_and_after_the_device_they_are_made_of(
    plan: LaunchPlan,
) -> None:
    # CVE-2025-31133: a mask must be made of a /dev/null that the rootfs has no hand in.
    before = last(plan, m.Attach, m.Bind, m.NewFilesystem, m.MakeDevice, m.MakeFile)
    assert before < first(plan, m.Mask)
    assert before < first(plan, m.RemountReadonly)


@every_plan
def test_a_slot_is_used_only_between_being_filled_and_being_closed(plan: LaunchPlan) -> None:
    filled: set[int] = set()
    for step in plan.steps:
        match step:
            case m.CloneTree(slot=slot) | m.NewFilesystem(slot=slot):
                assert slot not in filled, "the mount that was in there would be lost"
                filled.add(slot)
            case m.Attach(slot=slot, close=close):
                assert {slot, op.SLOT_ROOT} <= filled
                if close:
                    filled.remove(slot)
            case m.Bind(slot=slot):
                assert op.SLOT_ROOT in filled
                assert slot == -1 or slot in filled
            case m.MakeDirectory(slot=slot) | m.MakeFile(slot=slot) | m.MakeSymlink(slot=slot):
                assert slot in filled
            case m.Park(slot=slot):
                assert slot in filled
            case m.MakeDevice():
                assert op.SLOT_DEV in filled
            case m.Mask():
                assert {op.SLOT_ROOT, op.SLOT_DEV, op.SLOT_FILES} <= filled
            case m.RemountReadonly() | m.EnterRoot():
                assert op.SLOT_ROOT in filled
    assert filled == {op.SLOT_ROOT, op.SLOT_DEV, op.SLOT_FILES}


@every_plan
def test_only_what_is_attached_is_cloned(plan: LaunchPlan) -> None:
    # Before Linux 6.15, open_tree clones nothing of a mount that is attached nowhere.
    attached = {-1}
    for step in plan.steps:
        match step:
            case m.Park(slot=slot) | m.Attach(slot=slot):
                attached.add(slot)
            case m.Bind(slot=slot):
                assert slot in attached
            case m.Mask():
                assert attached >= {op.SLOT_FILES, op.SLOT_DEV}


@every_plan
def test_what_is_parked_is_covered_by_the_root(plan: LaunchPlan) -> None:
    # On top of the root, it would be in the way of symlinks that lead back there by "..".
    (place,) = [step.place for step in plan.steps if isinstance(step, m.Park)]
    assert place == (b"/" if plan.blank else b"/proc")
    assert first(plan, m.EnterBlank if plan.blank else m.PrivateMounts) < first(plan, m.Park)
    assert last(plan, m.Park) < first(plan, m.EnterRoot)


@every_plan
def test_files_are_made_only_on_filesystems_of_ours(plan: LaunchPlan) -> None:
    ours: set[int] = set()
    for step in plan.steps:
        if isinstance(step, m.NewFilesystem) or (
            isinstance(step, m.CloneTree) and step.below in ours
        ):
            ours.add(step.slot)
        elif isinstance(step, m.MakeDirectory | m.MakeFile | m.MakeSymlink):
            assert step.slot in ours


@every_plan
def test_a_directory_is_made_before_what_is_in_it(plan: LaunchPlan) -> None:
    made: set[tuple[int, bytes]] = set()
    for step in plan.steps:
        if isinstance(step, m.MakeDirectory | m.MakeFile | m.MakeSymlink):
            parent = step.path.rpartition(b"/")[0]
            assert not parent or (step.slot, parent) in made, step
            assert (step.slot, step.path) not in made, step
            made.add((step.slot, step.path))


# --- flags ----------------------------------------------------------------------------------------


@every_plan
def test_no_filesystem_besides_the_root_honours_setuid_or_programs(plan: LaunchPlan) -> None:
    others = [step for step in filesystems(plan) if step.slot != op.SLOT_ROOT]
    assert {step.kind for step in others} == {b"proc", b"sysfs", b"tmpfs", b"devpts", b"mqueue"}
    for step in others:
        assert step.attributes & _NOSUID, step
        assert step.attributes & _NOEXEC, step


@every_plan
def test_devices_work_only_where_we_put_them(plan: LaunchPlan) -> None:
    for step in filesystems(plan):
        # /dev is a part of what is in SLOT_FILES.
        made_for_devices = step.slot == op.SLOT_FILES or step.kind == b"devpts"
        assert bool(step.attributes & _NODEV) != made_for_devices, step
    (memory,) = (x for x in plan.steps if isinstance(x, m.CloneTree) and x.source == b"shm")
    assert memory.attributes & _NODEV


@every_plan
def test_sysfs_is_read_only_and_proc_writable(plan: LaunchPlan) -> None:
    readonly = {step.kind: step.attributes & f.MOUNT_ATTR_RDONLY for step in filesystems(plan)}
    assert readonly[b"sysfs"]
    assert not readonly[b"proc"]


@every_plan
def test_every_tmpfs_beside_the_root_is_of_limited_size(plan: LaunchPlan) -> None:
    limited = [step for step in filesystems(plan) if step.kind == b"tmpfs" and step.slot]
    assert len(limited) == 1, "each makes all starts and ends on the host slower"
    assert all(b"size" in dict(step.options) for step in limited)


@every_plan
def test_terminals_are_the_containers_own(plan: LaunchPlan) -> None:
    (devpts,) = (step for step in filesystems(plan) if step.kind == b"devpts")
    assert (b"newinstance", b"") in devpts.options
    assert (b"ptmxmode", b"0666") in devpts.options


@every_plan
def test_shared_memory_is_for_everybody_and_terminals_for_their_group(plan: LaunchPlan) -> None:
    options = [dict(step.options) for step in filesystems(plan)]
    assert {b"mode": b"0755", b"size": b"67108864"} in options
    assert m.MakeDirectory(op.SLOT_FILES, b"shm", 0o1777) in plan.steps
    (devpts,) = (found for found in options if b"newinstance" in found)
    assert devpts[b"mode"] == b"0620"
    assert devpts.get(b"gid", b"5") == b"5"


def test_whoever_the_user_is_can_use_the_devices_and_read_etc() -> None:
    for plan in PLANS.values():
        files = [step for step in plan.steps if isinstance(step, m.MakeFile)]
        modes = {step.path: step.mode for step in files if step.slot == op.SLOT_DEV}
        assert set(modes.values()) <= {0o666}
        assert {step.mode for step in files if step.slot != op.SLOT_DEV} == {0o644}


@every_rootfs_plan
def test_the_containers_own_etc_files_can_be_changed_inside(plan: LaunchPlan) -> None:
    covers = [x for x in plan.steps if isinstance(x, m.Bind) and x.slot == op.SLOT_FILES]
    assert [x.attributes for x in covers] == [0] * 3


def test_directories_of_the_built_in_root_have_the_usual_modes() -> None:
    steps = make_run_plan(root=None).steps
    made = [x for x in steps if isinstance(x, m.MakeDirectory) and x.slot == op.SLOT_ROOT]
    special = {
        b"tmp": 0o1777, b"var/tmp": 0o1777, b"root": 0o700, b"proc": 0o555, b"sys": 0o555,
    }  # fmt: skip
    assert {x.path: x.mode for x in made} == {x.path: special.get(x.path, 0o755) for x in made}
    assert special.keys() <= {x.path for x in made}


@every_plan
def test_what_masks_a_directory_is_empty_and_stays_so(plan: LaunchPlan) -> None:
    (empty,) = (x for x in plan.steps if isinstance(x, m.MakeDirectory) and x.path == b"empty")
    assert (empty.slot, empty.mode) == (op.SLOT_FILES, 0o555)


# --- targets --------------------------------------------------------------------------------------


@every_plan
def test_kernel_filesystems_are_attached_to_directories_reached_without_symlinks(
    plan: LaunchPlan,
) -> None:
    attached = [step for step in plan.steps if isinstance(step, m.Attach)]
    how = {step.path: step.how for step in attached if step.slot < op.SLOT_HOST}
    assert {path for path, kind in how.items() if kind == op.TARGET_DIRECTORY} == {
        b"proc", b"sys", b"dev",
    }  # fmt: skip
    assert {path for path, kind in how.items() if kind == op.TARGET_EXISTING} == {
        b"dev/pts", b"dev/shm", b"dev/mqueue",
    }  # fmt: skip


@every_plan
def test_everything_below_dev_is_made_before_it_is_attached_to(plan: LaunchPlan) -> None:
    made = {step.path for step in plan.steps if isinstance(step, m.MakeDirectory)}
    for step in plan.steps:
        if isinstance(step, m.Attach) and step.how == op.TARGET_EXISTING:
            assert step.path.removeprefix(b"dev/") in made


@every_plan
def test_the_hosts_memory_keys_and_hardware_are_masked(plan: LaunchPlan) -> None:
    masked = {step.path for step in plan.steps if isinstance(step, m.Mask)}
    assert masked >= {
        b"proc/kcore", b"proc/keys", b"proc/timer_list", b"proc/sched_debug", b"proc/acpi",
        b"proc/scsi", b"proc/interrupts", b"sys/firmware", b"sys/devices/virtual/powercap",
    }  # fmt: skip


@every_plan
def test_root_inside_cannot_write_to_what_governs_the_host(plan: LaunchPlan) -> None:
    readonly = {step.path for step in plan.steps if isinstance(step, m.RemountReadonly)}
    assert readonly >= {b"proc/sys", b"proc/sysrq-trigger", b"proc/irq", b"proc/bus", b"proc/fs"}


@every_plan
def test_targets_and_masks_are_relative_to_the_root(plan: LaunchPlan) -> None:
    for step in plan.steps:
        if isinstance(step, m.Attach | m.Bind | m.Mask | m.RemountReadonly | m.MakeFile):
            assert not step.path.startswith(b"/"), step
            assert b".." not in step.path.split(b"/"), step


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [False, True])
def test_there_are_the_same_devices_whether_made_or_bound(bound: bool) -> None:
    steps = make_run_plan(host=make_host(user_namespace=bound)).steps
    made = {(x.path, x.major, x.minor) for x in steps if isinstance(x, m.MakeDevice)}
    files = {x.path for x in steps if isinstance(x, m.MakeFile) and x.slot == op.SLOT_DEV}
    binds = {x.source: x.path for x in steps if isinstance(x, m.Bind) and x.path[:4] == b"dev/"}
    names = {name for name, _, _ in DEVICES}
    directories = {
        x.mode for x in steps if isinstance(x, m.MakeDirectory) and x.slot == op.SLOT_DEV
    }
    assert directories == {0o755}
    if bound:
        assert not made
        flags = {x.attributes for x in steps if isinstance(x, m.Bind) and x.path[:4] == b"dev/"}
        assert flags == {0}, "a device on a nodev mount is none"
        assert files == names
        assert binds == {b"/dev/" + name: b"dev/" + name for name in names}
    else:
        assert made == set(DEVICES)
        assert not files
        assert not binds


def test_a_user_namespace_gets_no_group_for_terminals_that_it_may_not_map() -> None:
    for bound in (False, True):
        plan = make_run_plan(host=make_host(user_namespace=bound))
        (devpts,) = (step for step in filesystems(plan) if step.kind == b"devpts")
        assert (b"gid" in dict(devpts.options)) != bound


# --- etc and the built-in root --------------------------------------------------------------------


def test_hosts_and_hostname_know_the_containers_name() -> None:
    files = dict(etc_files("box"))
    assert files[b"hostname"] == b"box\n"
    assert b"127.0.1.1\tbox\n" in files[b"hosts"]
    assert b"127.0.0.1\tlocalhost\n" in files[b"hosts"]
    assert b"\nnameserver" not in b"\n" + files[b"resolv.conf"]


@pytest.mark.parametrize("root", ["rootfs", "built-in"])
def test_the_container_sees_these_files_whatever_its_root(root: str) -> None:
    plan = PLANS[f"{root}/made-devices/no-init/hybrid"]
    made = {x.path: x.content for x in plan.steps if isinstance(x, m.MakeFile)}
    for name, content in etc_files("box"):
        assert made[name if root == "rootfs" else b"etc/" + name] == content


def test_nothing_of_the_host_is_writable_or_setuid_from_the_built_in_root() -> None:
    plan = make_run_plan(root=None)
    taken = [x for x in plan.steps if isinstance(x, m.CloneTree) and x.below == -1]
    assert {x.source for x in taken} == {
        b"/usr", b"/lib64", b"/etc/ld.so.cache", b"/etc/alternatives", b"/etc/ssl/certs",
    }  # fmt: skip
    attached = {x.slot: x.path for x in plan.steps if isinstance(x, m.Attach)}
    for tree in taken:
        assert tree.attributes == f.MOUNT_ATTR_RDONLY | _NOSUID | _NODEV, tree
        assert attached[tree.slot] == tree.source[1:]


def test_bin_is_in_the_built_in_root_what_it_is_on_the_host() -> None:
    plan = make_run_plan(root=None)
    links = {x.path: x.to for x in plan.steps if isinstance(x, m.MakeSymlink)}
    directories = {x.path for x in plan.steps if isinstance(x, m.MakeDirectory)}
    assert links[b"bin"] == b"usr/bin"
    assert b"lib64" in directories
    assert b"bin" not in directories


def test_a_bound_directory_of_etc_is_bound_as_one_and_a_file_as_one() -> None:
    plan = make_run_plan(root=None)
    how = {x.path: x.how for x in plan.steps if isinstance(x, m.Attach)}
    assert how[b"etc/alternatives"] == op.TARGET_DIRECTORY
    assert how[b"etc/ld.so.cache"] == op.TARGET_FILE


def test_the_accounts_of_the_built_in_root_are_well_formed() -> None:
    plan = make_run_plan(root=None)
    made = {x.path: x.content for x in plan.steps if isinstance(x, m.MakeFile)}
    passwd = [line.split(b":") for line in made[b"etc/passwd"].splitlines()]
    groups = [line.split(b":") for line in made[b"etc/group"].splitlines()]
    assert all(len(fields) == 7 for fields in passwd)
    assert all(len(fields) == 4 for fields in groups)
    assert {fields[3] for fields in passwd} <= {fields[2] for fields in groups}
