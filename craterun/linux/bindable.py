"""What of the mount table a recursive bind leaves out, or cannot take (mount_namespaces(7))."""

from __future__ import annotations

from collections.abc import Sequence

from craterun.linux.proc import Mount


def is_bindable(path: str, mounts: Sequence[Mount]) -> bool:
    """Whether open_tree(2) with AT_RECURSIVE copies ``path`` with all that is mounted in it, and
    move_mount(2) attaches the copy.

    Not if it is on an unbindable mount; unbindable mounts in it would be left out without a word,
    and what they cover would appear. A mount namespace that is pinned in it (nsfs) is copied but
    cannot be attached. With a copy of the whole mount namespace that is another matter: clone3(2)
    copies unbindable mounts, and leaves out the pins.

    :param path: absolute, without symlinks
    """
    inside = path.rstrip("/") + "/"
    on: Mount | None = None
    for mount in mounts:
        if mount.point.startswith(inside):
            if mount.unbindable or _is_pin(mount):
                return False
        elif inside.startswith(mount.point.rstrip("/") + "/") and (
            on is None or len(mount.point) >= len(on.point)
        ):
            on = mount
    return on is None or not on.unbindable


def _is_pin(mount: Mount) -> bool:
    return mount.kind == "nsfs" and mount.root.startswith("mnt:[")
