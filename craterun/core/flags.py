"""Kernel constants that plans and system calls name, spelled as in their headers.

Plain integers, not enums: the keeper imports this module, and what the keeper imports is copied
(as page tables) by every clone. Values are ABI and the same on every architecture with the generic
system call table.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Final

# clone3(2), setns(2), unshare(2): <linux/sched.h>
CLONE_FILES: Final = 0x00000400
CLONE_PIDFD: Final = 0x00001000  # Linux 5.2
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000  # Linux 4.6
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000  # clone3 only, Linux 5.7

# mount(2), umount2(2): <linux/mount.h>
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

# mount_setattr(2) and fsmount(2): <linux/mount.h>, Linux 5.12
MOUNT_ATTR_RDONLY: Final = 0x00000001
MOUNT_ATTR_NOSUID: Final = 0x00000002
MOUNT_ATTR_NODEV: Final = 0x00000004
MOUNT_ATTR_NOEXEC: Final = 0x00000008

# open_tree(2), move_mount(2), fsopen(2) and kin: <linux/mount.h>, Linux 5.2
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0o2000000
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x00000040
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

# openat2(2): <linux/openat2.h>, Linux 5.6
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

CLOSE_RANGE_UNSHARE: Final = 2  # close_range(2)
CLOSE_RANGE_CLOEXEC: Final = 4  # Linux 5.11

# prctl(2): <linux/prctl.h>
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

KEYCTL_JOIN_SESSION_KEYRING: Final = 1  # keyctl(2)
