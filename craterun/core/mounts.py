"""The mount plan: what a container finds at /proc, /dev, /sys and in /etc.

The order matters for safety. The rootfs may be hostile, so: its /etc files are covered first, while
no filesystem of ours is mounted that a symlink could lead into; /proc, /dev and /sys are attached
to directories reached without any symlink; masks come last, made from the /dev/null and the empty
directory that we created ourselves, never from the rootfs's (CVE-2025-31133).

What does not depend on the container is built once: a start pays for what is new about it.
"""

from __future__ import annotations

from functools import cache

from craterun.core import flags as f
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s

DEVICES = (
    (b"null", 1, 3),
    (b"zero", 1, 5),
    (b"full", 1, 7),
    (b"random", 1, 8),
    (b"urandom", 1, 9),
    (b"tty", 5, 0),
)
"""Devices of every container, numbers as in devices.txt; the OCI runtime-spec's list."""

DEVICE_LINKS = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
)

READONLY_PATHS = (b"proc/bus", b"proc/fs", b"proc/irq", b"proc/sys", b"proc/sysrq-trigger")
"""Root in a container has the host's uid 0, to which these files listen."""

MASKED_FILES = (
    b"proc/interrupts", b"proc/kcore", b"proc/keys", b"proc/latency_stats", b"proc/sched_debug",
    b"proc/timer_list", b"proc/timer_stats",
)  # fmt: skip
MASKED_DIRECTORIES = (
    b"proc/acpi", b"proc/asound", b"proc/scsi", b"sys/devices/virtual/powercap", b"sys/firmware",
)  # fmt: skip
"""What tells about the host, its memory or its hardware; runc's and containerd's list."""

TTY_GROUP = 5
"""gid of ``tty`` on Debian and most others; what grantpt(3) expects of devpts."""

SHM_BYTES = 64 * 1024 * 1024
"""What /dev/shm, /dev and the files bound into /etc can hold together."""

_DEVICES = f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NOEXEC
_STRICT = f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV | f.MOUNT_ATTR_NOEXEC


def etc_files(hostname: str) -> tuple[tuple[bytes, bytes], ...]:
    """The container's own hosts, hostname and resolv.conf: (name, content).

    There is no network besides loopback, so no resolver could be reached; saying so in the file
    makes a lookup fail at once with a reason to be found.
    """
    name = hostname.encode()
    return (
        (b"hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t"
                   + name + b"\n"),
        (b"hostname", name + b"\n"),
        (b"resolv.conf", b"# no nameserver: this container has no network besides loopback\n"),
    )  # fmt: skip


def scratch_steps(place: bytes) -> tuple[s.Step, ...]:
    """A tmpfs whose parts are bound: files in /etc, /dev, /dev/shm, what masks directories.

    One, since every filesystem that exists makes all starts and ends on the host slower: the kernel
    goes through their lists whenever it removes a memory cgroup.

    :param place: where it is attached, as a `mount_steps.Park` says
    """
    options = ((b"mode", b"0755"), (b"size", str(SHM_BYTES).encode()))
    return (
        m.NewFilesystem(op.SLOT_FILES, b"tmpfs", options, _DEVICES),
        m.Park(op.SLOT_FILES, place),
        m.MakeDirectory(op.SLOT_FILES, b"empty", 0o555),
        m.MakeDirectory(op.SLOT_FILES, b"dev", 0o755),
        m.MakeDirectory(op.SLOT_FILES, b"shm", 0o1777),
    )


def etc_steps(hostname: str) -> list[s.Step]:
    """Cover the rootfs's own /etc files with the container's."""
    plan: list[s.Step] = []
    for name, content in etc_files(hostname):
        plan.append(m.MakeFile(op.SLOT_FILES, name, 0o644, content))
        plan.append(m.Bind(op.SLOT_FILES, name, b"etc/" + name, op.TARGET_FILE, 0))
    return plan


@cache
def kernel_filesystem_steps() -> tuple[s.Step, ...]:
    """/proc and /sys, the kernel's own."""
    return (
        m.NewFilesystem(op.SLOT_WORK, b"proc", (), _STRICT),
        m.Attach(op.SLOT_WORK, b"proc", op.TARGET_DIRECTORY, True),
        m.NewFilesystem(op.SLOT_WORK, b"sysfs", (), _STRICT | f.MOUNT_ATTR_RDONLY),
        m.Attach(op.SLOT_WORK, b"sys", op.TARGET_DIRECTORY, True),
    )


@cache
def device_steps(*, bind_devices: bool) -> tuple[s.Step, ...]:
    """A minimal /dev.

    :param bind_devices: bind the host's devices, as a user namespace demands; else create them
    """
    plan: list[s.Step] = [
        m.CloneTree(op.SLOT_DEV, b"dev", below=op.SLOT_FILES),
        *(m.MakeSymlink(op.SLOT_DEV, name, to) for name, to in DEVICE_LINKS),
        *(m.MakeDirectory(op.SLOT_DEV, name, 0o755) for name in (b"pts", b"shm", b"mqueue")),
    ]
    if bind_devices:
        plan += [m.MakeFile(op.SLOT_DEV, name, 0o666, b"") for name, _, _ in DEVICES]
    else:
        plan += [m.MakeDevice(name, major, minor) for name, major, minor in DEVICES]
    plan.append(m.Attach(op.SLOT_DEV, b"dev", op.TARGET_DIRECTORY, False))
    if bind_devices:
        plan += [
            m.Bind(-1, b"/dev/" + name, b"dev/" + name, op.TARGET_EXISTING, 0)
            for name, _, _ in DEVICES
        ]
    group = () if bind_devices else ((b"gid", str(TTY_GROUP).encode()),)
    plan += [
        m.NewFilesystem(
            op.SLOT_WORK,
            b"devpts",
            ((b"newinstance", b""), (b"ptmxmode", b"0666"), (b"mode", b"0620"), *group),
            _DEVICES,
        ),
        m.Attach(op.SLOT_WORK, b"dev/pts", op.TARGET_EXISTING, True),
        m.CloneTree(op.SLOT_WORK, b"shm", _STRICT, below=op.SLOT_FILES),
        m.Attach(op.SLOT_WORK, b"dev/shm", op.TARGET_EXISTING, True),
        m.NewFilesystem(op.SLOT_WORK, b"mqueue", (), _STRICT),
        m.Attach(op.SLOT_WORK, b"dev/mqueue", op.TARGET_EXISTING, True),
    ]
    return tuple(plan)


@cache
def protection_steps() -> tuple[s.Step, ...]:
    """Read-only and masked paths."""
    return (
        *(m.RemountReadonly(path) for path in READONLY_PATHS),
        *(m.Mask(path, directory=False) for path in MASKED_FILES),
        *(m.Mask(path, directory=True) for path in MASKED_DIRECTORIES),
    )
