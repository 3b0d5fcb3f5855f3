"""Capabilities by name: what root keeps inside a container (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names in the order of their numbers, ``<linux/capability.h>`` (Linux 5.9: 41 of them)."""

DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
"""What root keeps in a container.

The set that podman settled on. Every capability that reaches past the namespaces is absent: MKNOD
would create the host's disks as device nodes, SYS_ADMIN would remount read-only binds writable,
DAC_READ_SEARCH would open the host's files by handle.
"""


def capability_mask(names: Iterable[str]) -> int:
    """Bit mask of capability ``names``, which are without their ``CAP_`` prefix."""
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES.index(name)
    return mask
