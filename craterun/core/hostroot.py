"""The built-in rootfs ``host``: the host's programs, none of its data.

A tmpfs of the container's own is the root. /usr is the host's, bound read-only; /bin, /sbin and
/lib* are what they are on the host, symlinks into /usr or directories bound the same way. /etc is
small and new. Everything else (/tmp, /run, /var/tmp, /root) is an empty directory on the tmpfs, so
that it can be written to and is gone afterwards. Nothing of the host is writable from it.
"""

from __future__ import annotations

from functools import cache

from craterun.core import flags as f
from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.mounts import etc_files
from craterun.core.spec import HostFacts

USR_NAMES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Top-level names that a distribution keeps programs and libraries under."""

ETC_NAMES = (
    "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
    "protocols", "services", "ssl/certs",
)  # fmt: skip
"""What programs in /usr need of the host's /etc; all of it public, all of it bound read-only."""

USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
user:x:1000:1000:user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
GROUPS = """\
root:x:0:
daemon:x:1:
tty:x:5:
user:x:1000:
nogroup:x:65534:
"""
NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""

_DIRECTORIES = (
    ("etc", 0o755), ("etc/ssl", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755),
    ("usr", 0o755), ("tmp", 0o1777), ("run", 0o755), ("root", 0o700), ("home", 0o755),
    ("mnt", 0o755), ("srv", 0o755), ("opt", 0o755), ("var", 0o755), ("var/tmp", 0o1777),
    ("var/log", 0o755), ("var/lib", 0o755), ("var/cache", 0o755),
)  # fmt: skip

_READONLY = f.MOUNT_ATTR_RDONLY | f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV


@cache
def create_steps(host: HostFacts) -> tuple[s.Step, ...]:
    """Build the root tmpfs, before it is attached."""
    plan: list[s.Step] = [
        m.NewFilesystem(op.SLOT_ROOT, b"tmpfs", ((b"mode", b"0755"),), f.MOUNT_ATTR_NODEV),
        *(m.MakeDirectory(op.SLOT_ROOT, name.encode(), mode) for name, mode in _DIRECTORIES),
        _link("var/run", "/run"),
        _link("etc/mtab", "/proc/self/mounts"),
        _etc_file(b"passwd", USERS.encode()),
        _etc_file(b"group", GROUPS.encode()),
        _etc_file(b"nsswitch.conf", NSSWITCH.encode()),
    ]
    for name, link in host.usr_entries:
        if link:
            plan.append(_link(name, link))
        else:
            plan.append(m.MakeDirectory(op.SLOT_ROOT, name.encode(), 0o755))
    return tuple(plan)


def etc_steps(hostname: str) -> list[s.Step]:
    """What of /etc depends on the container."""
    return [_etc_file(name, content) for name, content in etc_files(hostname)]


@cache
def clone_steps(host: HostFacts) -> tuple[s.Step, ...]:
    """Take the host's programs, all read-only and without setuid, from where its files are."""
    return tuple(
        m.CloneTree(slot, b"/" + path, _READONLY, private=True)
        for slot, (path, _) in enumerate(_from_host(host), op.SLOT_HOST)
    )


@cache
def attach_steps(host: HostFacts) -> tuple[s.Step, ...]:
    """Put them into the root."""
    return tuple(
        m.Attach(slot, path, how, close=True)
        for slot, (path, how) in enumerate(_from_host(host), op.SLOT_HOST)
    )


def _from_host(host: HostFacts) -> list[tuple[bytes, int]]:
    """Where from and where to, relative to the root, and how that is found."""
    names = ["usr", *(name for name, link in host.usr_entries if not link)]
    found = [(name.encode(), op.TARGET_DIRECTORY) for name in names]
    for name in host.etc_entries:
        how = op.TARGET_DIRECTORY if name.endswith("/") else op.TARGET_FILE
        found.append((b"etc/" + name.rstrip("/").encode(), how))
    return found


def _link(name: str, to: str) -> s.Step:
    return m.MakeSymlink(op.SLOT_ROOT, name.encode(), to.encode())


def _etc_file(name: bytes, content: bytes) -> s.Step:
    return m.MakeFile(op.SLOT_ROOT, b"etc/" + name, 0o644, content)
