"""Numbers and names that launch plans and the messages of the keeper's protocol are made of.

Shared by the plan's programs (`core.program`), by their executor (`keeper.child`) and by both ends
of the keeper's socket. Plain integers for the reason given in `core.flags`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Final

PROTOCOL: Final = 2
"""Raised whenever a launch or a plan's calls mean something else than before. Keeper and supervisor
are of one version, but a supervisor that is killed after an upgrade has a successor of the new one.
"""

# --- system calls of a launch plan --------------------------------------------------------------
CALLS: Final = (
    ("syscall", 0), ("capset", 0), ("chdir", 0), ("chroot", 0), ("close", 0), ("dup2", 0),
    ("dup3", 0), ("fchdir", 0), ("ioctl", 0), ("mkdirat", 0), ("mknodat", 0), ("mount", 0),
    ("openat", 0), ("pivot_root", 0), ("poll", 0), ("prctl", 0), ("sethostname", 0),
    ("setgroups", 0), ("setns", 0), ("setresgid", 0), ("setresuid", 0), ("setrlimit", 0),
    ("setsid", 0), ("socket", 0), ("symlinkat", 0), ("umask", 0), ("umount2", 0), ("unshare", 0),
    ("write", 0),
    ("open_tree", 428), ("move_mount", 429), ("fsopen", 430), ("fsconfig", 431), ("fsmount", 432),
    ("close_range", 436), ("openat2", 437), ("mount_setattr", 442),
)  # fmt: skip
"""Functions of the C library, or numbers for its syscall(2) where it may have none.

From 424 on, the numbers are the same on all architectures (<asm-generic/unistd.h>, since 2019).
"""
SPECIAL: Final = (
    "check_directory", "check_inside", "execute", "fork_inside", "joined_null", "open_terminal",
    "session_keyring", "start_init",
)  # fmt: skip
"""What the child does that is more than one system call; `keeper.child` has the functions."""

# --- descriptors of the child, besides 0, 1 and 2 -------------------------------------------------
ERROR_FD: Final = 3
"""The error pipe."""
GIVEN_FD: Final = 4
"""The blank mount namespace to begin in, or the pidfd of the container to join, if there is either.
Next is the socket that a terminal is passed out by, if there is to be one; what the steps open
follows.
"""

# --- descriptors that steps hand to each other within the child ------------------------------
SLOT_ROOT: Final = 0
"""The tree that becomes the container's root."""
SLOT_DEV: Final = 1
"""The tmpfs on /dev."""
SLOT_FILES: Final = 2
"""A tmpfs with the container's own hosts, hostname and resolv.conf, and an empty directory."""
SLOT_WORK: Final = 3
"""A mount on its way from the step that makes it to the step that attaches it."""
SLOT_HOST: Final = 16
"""The first of the host's files and directories, in the order in which they are attached."""

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
MSG_DROP: Final = 4
"""End a process of which nothing is to be heard any more, and forget it."""
# --- messages, keeper to supervisor -------------------------------------------------------------
MSG_STARTED: Final = 10
MSG_FAILED: Final = 11
MSG_EXITED: Final = 12
MSG_ADOPTED: Final = 13

# --- in place of a call's number, in MSG_FAILED ---------------------------------------------------
CLONE_FAILED: Final = -1
"""There was no child."""
NATIVE_FAILED: Final = -2
"""Machine code cannot say more than this; the same launch, carried out by Python, can."""
NEVER: Final = b"never"
"""Evidence of NATIVE_FAILED: there is no machine code here."""
NOW: Final = b"now"
"""Likewise: it could not be done this time."""
SWITCH: Final = "CRATERUN_NATIVE"
"""Environment variable; "0" has Python do what machine code does."""

# --- records, child to keeper, over the close-on-exec pipe --------------------------------------
RECORD_TABLE: Final = 0
"""Nothing more: the child has a table of descriptors of its own now."""
RECORD_ERROR: Final = 1
"""u16 number of the call, u16 errno, then bytes that depend on it (see `core.failures`)."""
RECORD_PID: Final = 2
"""u32 pid, in the keeper's pid namespace, of the process forked inside the joined namespaces."""
