"""Numbers that name the steps of a launch plan and the messages of the keeper's protocol.

Shared by the plan (`core.plan`, frozen structs), by its executor (`keeper.child`) and by both ends
of the keeper's socket. Plain integers for the reason given in `core.flags`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Final

# --- steps of a launch plan, in about the order in which plans use them -------------------------
OP_SETSID: Final = 0
OP_JOIN_CGROUP: Final = 1
OP_UNSHARE: Final = 2
OP_PRIVATE_MOUNTS: Final = 3
OP_CLONE_TREE: Final = 4
OP_NEW_FILESYSTEM: Final = 5
OP_ENTER_ROOT: Final = 6
OP_ATTACH: Final = 7
OP_MAKE_DIRECTORY: Final = 8
OP_MAKE_FILE: Final = 9
OP_MAKE_SYMLINK: Final = 10
OP_MAKE_DEVICE: Final = 11
OP_BIND: Final = 12
OP_REMOUNT_READONLY: Final = 13
OP_MASK: Final = 14
OP_PIVOT_ROOT: Final = 15
OP_SET_HOSTNAME: Final = 16
OP_LOOPBACK_UP: Final = 17
OP_SESSION_KEYRING: Final = 18
OP_STDIO: Final = 19
OP_CREDENTIALS: Final = 20
OP_CHANGE_DIRECTORY: Final = 21
OP_DIE_WITH_KEEPER: Final = 22
OP_INIT: Final = 23
OP_EXECUTE: Final = 24
OP_JOIN_NAMESPACES: Final = 25
OP_FORK_INSIDE: Final = 26
OP_CLOSE_DESCRIPTORS: Final = 27
OP_PARK: Final = 28

# --- descriptors that steps hand to each other within the child ------------------------------
SLOT_ROOT: Final = 0
"""The tree that becomes the container's root."""
SLOT_DEV: Final = 1
"""The tmpfs on /dev."""
SLOT_FILES: Final = 2
"""A tmpfs with the container's own hosts, hostname and resolv.conf, and an empty directory."""
SLOT_WORK: Final = 3
"""A mount on its way from the step that makes it to the step that attaches it."""
SLOTS: Final = 4

# --- how a target inside the rootfs is found --------------------------------------------------
TARGET_DIRECTORY: Final = 0
"""A directory reached without any symlink; made if absent. For /proc, /sys, /dev."""
TARGET_FILE: Final = 1
"""A file, symlinks followed inside the rootfs only; made if absent, skipped where it cannot be."""
TARGET_EXISTING: Final = 2
"""Whatever is there, reached without any symlink; skipped if absent."""

# --- messages, supervisor to keeper -------------------------------------------------------------
MSG_LAUNCH: Final = 1
MSG_ADOPT: Final = 2
MSG_RELEASE: Final = 3
# --- messages, keeper to supervisor -------------------------------------------------------------
MSG_STARTED: Final = 10
MSG_FAILED: Final = 11
MSG_EXITED: Final = 12
MSG_ADOPTED: Final = 13

# --- records, child to keeper, over the close-on-exec pipe --------------------------------------
RECORD_ERROR: Final = 1
"""u16 step, u16 errno, then bytes that depend on the step (see `core.failures`)."""
RECORD_PID: Final = 2
"""u32 pid, in the keeper's pid namespace, of the process forked inside the joined namespaces."""
