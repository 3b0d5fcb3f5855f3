"""The steps of a launch plan that make the container's mounts and files (see `core.steps`)."""

from __future__ import annotations

from collections.abc import Hashable

from craterun.core.errors import printable
from craterun.core.steps import Step, Values


class PrivateMounts(Step, frozen=True):
    """Cut mount propagation both ways (mount_namespaces(7))."""

    def doing(self) -> str:
        return "cut mount propagation"

    def target(self) -> str:
        return "/"


class CloneTree(Step, frozen=True):
    """open_tree(2) with OPEN_TREE_CLONE into ``slot``, then ``attributes`` on all of it.

    :ivar below: the slot that ``source`` is relative to, or -1 for the host's root
    :ivar private: cut its mount propagation both ways (mount_namespaces(7)); else as in ``source``
    :ivar device: expected st_dev of ``source``, or 0; together with ``inode`` it proves that the
        directory is the one that was checked
    """

    slot: int
    source: bytes
    attributes: int = 0
    device: int = 0
    inode: int = 0
    below: int = -1
    private: bool = False

    def doing(self) -> str:
        return "bind a directory"

    def target(self) -> str:
        return printable(self.source)


class NewFilesystem(Step, frozen=True):
    """fsopen(2), fsconfig(2), fsmount(2): a new instance of ``kind``, not yet attached."""

    slot: int
    kind: bytes
    options: tuple[tuple[bytes, bytes], ...]
    attributes: int

    def doing(self) -> str:
        return f"create a {printable(self.kind)} filesystem"


class EnterBlank(Step, frozen=True):
    """Begin in a copy of the blank mount namespace: "/" is an empty directory (`keeper.blank`)."""

    def doing(self) -> str:
        return "create a mount namespace"


class EnterRoot(Step, frozen=True):
    """Attach ``SLOT_ROOT`` on top of / and of what is parked there. It is the working directory."""

    def doing(self) -> str:
        return "attach the rootfs"


class Attach(Step, frozen=True):
    """move_mount(2) the mount in ``slot`` to ``path`` in ``SLOT_ROOT``.

    :ivar how: ``TARGET_*``, how the path is resolved and what happens if it is absent
    :ivar close: whether the slot is of no more use
    """

    slot: int
    path: bytes
    how: int
    close: bool

    def doing(self) -> str:
        return f"mount on /{printable(self.path)} of the container"

    def target(self) -> str:
        return f"/{printable(self.path)}"


class Park(Step, frozen=True):
    """Attach the mount in ``slot`` where no path is going to lead to.

    Before Linux 6.15, open_tree(2) clones nothing of a mount that is attached nowhere. On top of
    the root it would be in the way of paths that lead back there by "..".

    :ivar place: in the blank namespace "/", which the root is going to cover; otherwise somewhere
        below it, since it is the topmost mount on "/" that `PivotRoot` detaches with all below
    """

    slot: int
    place: bytes

    def doing(self) -> str:
        return "park a filesystem"


class MakeDirectory(Step, frozen=True):
    """mkdir(2) below ``slot``, a filesystem of ours."""

    slot: int
    path: bytes
    mode: int

    def doing(self) -> str:
        return "create a directory"

    def target(self) -> str:
        return printable(self.path)


class MakeFile(Step, frozen=True):
    """A file with ``content`` below ``slot``, a filesystem of ours."""

    slot: int
    path: bytes
    mode: int
    content: bytes

    def doing(self) -> str:
        return "create a file"

    def target(self) -> str:
        return printable(self.path)

    def own(self) -> Values:
        return (self.content,)

    def shape(self) -> Hashable:
        return (MakeFile, self.slot, self.path, self.mode, not self.content)


class MakeSymlink(Step, frozen=True):
    """symlink(2) below ``slot``, a filesystem of ours."""

    slot: int
    path: bytes
    to: bytes

    def doing(self) -> str:
        return "create a symlink"

    def target(self) -> str:
        return printable(self.path)


class MakeDevice(Step, frozen=True):
    """A character device below ``SLOT_DEV``, mode 0666 (mknod(2))."""

    path: bytes
    major: int
    minor: int

    def doing(self) -> str:
        return "create a device"

    def target(self) -> str:
        return f"/dev/{printable(self.path)}"


class Bind(Step, frozen=True):
    """Bind ``source`` to ``path`` in ``SLOT_ROOT``.

    :ivar slot: the directory that ``source`` is relative to, or -1 for the host's root
    """

    slot: int
    source: bytes
    path: bytes
    how: int
    attributes: int

    def doing(self) -> str:
        return f"bind onto /{printable(self.path)} of the container"

    def target(self) -> str:
        return printable(self.source)


class RemountReadonly(Step, frozen=True):
    """Bind ``path`` of the container onto itself, read-only; skipped if absent."""

    path: bytes

    def doing(self) -> str:
        return "make a path read-only"

    def target(self) -> str:
        return f"/{printable(self.path)}"


class Mask(Step, frozen=True):
    """Hide ``path`` of the container: a file behind /dev/null, a directory behind an empty one.

    Skipped if absent.
    """

    path: bytes
    directory: bool

    def doing(self) -> str:
        return "mask a path"

    def target(self) -> str:
        return f"/{printable(self.path)}"


class PivotRoot(Step, frozen=True):
    """pivot_root(2) to the new root and detach the old one."""

    def doing(self) -> str:
        return "change the root"


class LeaveBlank(Step, frozen=True):
    """chroot(2) to the new root, which covers an empty one."""

    def doing(self) -> str:
        return "change the root"
