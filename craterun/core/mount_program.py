"""From steps about mounts and files to system calls (see `core.program`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT

from craterun.core import flags as f
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core.assembler import Assembler, Translations

_NO_LINKS = f.RESOLVE_BENEATH | f.RESOLVE_NO_SYMLINKS | f.RESOLVE_NO_MAGICLINKS
_IN_ROOT = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_MAGICLINKS
_ANY: tuple[int, ...] = ()

MOUNTS = Translations()
_assembles = MOUNTS.of


def _how(flags: int, mode: int, resolve: int) -> tuple[bytes, int]:
    """``struct open_how`` and its size (openat2(2))."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return how, len(how)


def _set_attributes(
    a: Assembler, mount: int, attributes: int, recursive: bool, propagation: int = 0
) -> None:
    """mount_setattr(2) with a ``struct mount_attr``."""
    if attributes or propagation:
        attr = struct.pack("QQQQ", attributes, 0, propagation, 0)
        flags = f.AT_EMPTY_PATH | (f.AT_RECURSIVE if recursive else 0)
        a.call("mount_setattr", mount, b"", flags, attr, len(attr))


def _clone(a: Assembler, slot: object, base: int, source: bytes, recursive: bool) -> int:
    """open_tree(2): a detached copy of the mount that ``source`` is on."""
    flags = f.OPEN_TREE_CLONE | f.OPEN_TREE_CLOEXEC | (f.AT_RECURSIVE if recursive else 0)
    return a.open(slot, "open_tree", base, source, flags)


def _move(a: Assembler, mount: int, target: int) -> None:
    """move_mount(2) of a detached mount onto what ``target`` refers to."""
    how = f.MOVE_MOUNT_F_EMPTY_PATH | f.MOVE_MOUNT_T_EMPTY_PATH
    a.call("move_mount", mount, b"", target, b"", how)


@contextmanager
def _target(a: Assembler, path: bytes, how: int) -> Iterator[int]:
    """Open a mount target inside the root; the calls of the block are left out without one."""
    root = a.slots[op.SLOT_ROOT]
    if how == op.TARGET_DIRECTORY:
        # First, since it nearly always exists: one cheap refusal instead of a decision.
        a.call("mkdirat", root, path, 0o755)
        a.tolerate(*_ANY)
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY
        yield a.open("target", "openat2", root, path, *_how(flags, 0, _NO_LINKS))
        a.close("target")
    elif how == op.TARGET_EXISTING:
        flags = os.O_PATH | os.O_NOFOLLOW
        target = a.open("target", "openat2", root, path, *_how(flags, 0, _NO_LINKS))
        with a.if_it_worked(ENOENT):
            yield target
            a.close("target")
    else:
        # Symlinks are followed, as if the rootfs were "/": /etc/resolv.conf often is one. A target
        # that does not exist is made only if no symlink is involved (O_EXCL follows none at the
        # end); a rootfs that is read-only or has no /etc does without.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        a.open("target", "openat2", root, path, *_how(flags, 0o644, _IN_ROOT))
        with a.if_it_worked(*_ANY):
            a.close("target")
        target = a.open("target", "openat2", root, path, *_how(os.O_PATH, 0, _IN_ROOT))
        with a.if_it_worked(*_ANY):
            yield target
            a.close("target")


def _attach_slot(a: Assembler, slot: object, path: bytes, how: int) -> None:
    with _target(a, path, how) as target:
        _move(a, a.slots[slot], target)


# --- one function for each kind of step -----------------------------------------------------------


@_assembles(m.PrivateMounts)
def _(a: Assembler, step: m.PrivateMounts) -> None:
    a.call("mount", None, b"/", None, f.MS_REC | f.MS_PRIVATE, None)


@_assembles(m.CloneTree)
def _(a: Assembler, step: m.CloneTree) -> None:
    base = a.slots[step.below] if step.below >= 0 else f.AT_FDCWD
    tree = _clone(a, step.slot, base, step.source, recursive=True)
    if step.inode:
        a.special("check_directory", tree, step.device, step.inode)
    propagation = f.MS_PRIVATE if step.private else 0
    _set_attributes(a, tree, step.attributes, recursive=True, propagation=propagation)


@_assembles(m.NewFilesystem)
def _(a: Assembler, step: m.NewFilesystem) -> None:
    context = a.open("context", "fsopen", step.kind, f.FSOPEN_CLOEXEC)
    # The source is what mount(8) shows.
    for key, value in ((b"source", step.kind), *step.options):
        if value:
            a.call("fsconfig", context, f.FSCONFIG_SET_STRING, key, value, 0)
        else:
            a.call("fsconfig", context, f.FSCONFIG_SET_FLAG, key, None, 0)
    a.call("fsconfig", context, f.FSCONFIG_CMD_CREATE, None, None, 0)
    a.open(step.slot, "fsmount", context, f.FSMOUNT_CLOEXEC, step.attributes)
    a.close("context")


@_assembles(m.EnterBlank)
def _(a: Assembler, step: m.EnterBlank) -> None:
    a.call("setns", a.slots["blank"], f.CLONE_NEWNS)
    a.close("blank")
    a.call("unshare", f.CLONE_NEWNS)


@_assembles(m.EnterRoot)
def _(a: Assembler, step: m.EnterRoot) -> None:
    # On top of "/": it always exists, and path look-ups of this process still begin below it, so
    # that what is there can be reached until the root is changed.
    root = a.slots[op.SLOT_ROOT]
    a.call("move_mount", root, b"", f.AT_FDCWD, b"/", f.MOVE_MOUNT_F_EMPTY_PATH)
    a.call("fchdir", root)


@_assembles(m.Attach)
def _(a: Assembler, step: m.Attach) -> None:
    _attach_slot(a, step.slot, step.path, step.how)
    if step.close:
        a.close(step.slot)


@_assembles(m.Park)
def _(a: Assembler, step: m.Park) -> None:
    mount = a.slots[step.slot]
    a.call("move_mount", mount, b"", f.AT_FDCWD, step.place, f.MOVE_MOUNT_F_EMPTY_PATH)


@_assembles(m.MakeDirectory)
def _(a: Assembler, step: m.MakeDirectory) -> None:
    a.call("mkdirat", a.slots[step.slot], step.path, step.mode)


@_assembles(m.MakeFile)
def _(a: Assembler, step: m.MakeFile) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    file = a.open("file", "openat", a.slots[step.slot], step.path, flags, step.mode)
    if step.content:
        a.call("write", file, a.own(), a.length(), wanted=a.length())
    a.close("file")


@_assembles(m.MakeSymlink)
def _(a: Assembler, step: m.MakeSymlink) -> None:
    a.call("symlinkat", step.to, a.slots[step.slot], step.path)


@_assembles(m.MakeDevice)
def _(a: Assembler, step: m.MakeDevice) -> None:
    mode = 0o020666  # S_IFCHR
    device = os.makedev(step.major, step.minor)
    a.call("mknodat", a.slots[op.SLOT_DEV], step.path, mode, device)


@_assembles(m.Bind)
def _(a: Assembler, step: m.Bind) -> None:
    base = a.slots[step.slot] if step.slot >= 0 else f.AT_FDCWD
    recursive = step.how == op.TARGET_DIRECTORY
    with _target(a, step.path, step.how) as target:
        tree = _clone(a, "tree", base, step.source, recursive)
        _set_attributes(a, tree, step.attributes, recursive)
        _move(a, tree, target)
        a.close("tree")


@_assembles(m.RemountReadonly)
def _(a: Assembler, step: m.RemountReadonly) -> None:
    with _target(a, step.path, op.TARGET_EXISTING) as target:
        tree = _clone(a, "tree", a.slots[op.SLOT_ROOT], step.path, recursive=True)
        _set_attributes(a, tree, f.MOUNT_ATTR_RDONLY, recursive=True)
        _move(a, tree, target)
        a.close("tree")


@_assembles(m.Mask)
def _(a: Assembler, step: m.Mask) -> None:
    with _target(a, step.path, op.TARGET_EXISTING) as target:
        if step.directory:
            tree = _clone(a, "tree", a.slots[op.SLOT_FILES], b"empty", recursive=False)
            _set_attributes(a, tree, f.MOUNT_ATTR_RDONLY, recursive=False)
        else:
            tree = _clone(a, "tree", a.slots[op.SLOT_DEV], b"null", recursive=False)
        _move(a, tree, target)
        a.close("tree")


@_assembles(m.PivotRoot)
def _(a: Assembler, step: m.PivotRoot) -> None:
    # Both on the same directory: the old root ends up on top of the new one, from where it is
    # detached, so that no directory for it is needed in the rootfs (pivot_root(2), NOTES).
    a.call("pivot_root", b".", b".")
    a.call("umount2", b".", f.MNT_DETACH)
    a.call("chdir", b"/")


@_assembles(m.LeaveBlank)
def _(a: Assembler, step: m.LeaveBlank) -> None:
    a.call("chroot", b".")
    a.call("chdir", b"/")
