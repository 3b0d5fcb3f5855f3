"""What the guest is told: kernel command line, environment and init script.

Everything here is pure text work; :mod:`tests.uml.runner` does the acts.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import IN_UML_VARIABLE
from .stream import FAILED, READY

#: The host's variables that COMMAND gets. Not HOME and not TMPDIR: those must
#: lie in the guest. Not PYTHONDONTWRITEBYTECODE either: compiling every module
#: anew in every process takes whole seconds in the guest.
_KEPT = frozenset(
    [
        "CI",
        "COLUMNS",
        "FORCE_COLOR",
        "LANG",
        "LANGUAGE",
        "LINES",
        "NO_COLOR",
        "PATH",
        "PYTHONHASHSEED",
        "PYTHONPATH",
        "PYTHONWARNINGS",
        "SSL_CERT_FILE",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    ]
)
_KEPT_PREFIXES = ("CRATERUN_", "HYPOTHESIS_", "LC_", "PYTEST_")

#: Directories that are empty and in memory in the guest, whatever the host has.
COVERED = ("/run", "/tmp", "/var/tmp", "/dev")
#: Where init keeps its own things in the guest.
_OWN = "/run/craterun-uml"

# The script is one function that is called in the last line, so that sh has read
# all of it before a mount covers the file. ``@NAME@`` stands for shell words that
# init_script() quotes. Descriptor 2 is the console, which is the boot log; 3 is
# the pipe that COMMAND writes to; 4 is the serial line.
_INIT = r"""#!/bin/sh
poweroff() {
    sync
    # When this fails, init's exit is a kernel panic, which is an end too.
    echo o >/proc/sysrq-trigger || exit 1
    while :; do sleep 1; done
}
die() {
    echo @FAILED@": $1" >&2
    poweroff
}
try() {
    "$@" || die "$*"
}
kill_the_rest() {
    # All processes but init and the pump; kernel threads do not heed it. Three
    # times, as a process may fork while the list is gone through.
    for round in 1 2 3; do
        for entry in /proc/[0-9]*; do
            case ${entry#/proc/} in
                1 | "$pump") ;;
                *) kill -KILL "${entry#/proc/}" 2>/dev/null ;;
            esac
        done
    done
}
main() {
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umask 022
    try mount -t proc -o nosuid,nodev,noexec proc /proc
    try mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
    try mount -t tmpfs -o mode=755 tmpfs /run
    try mkdir -p @OWN@/host
    # A way to the files below the mounts that follow. Not recursive: the host's
    # files only, without what is mounted here.
    try mount --bind / @OWN@/host
    try mount -t tmpfs -o mode=1777 tmpfs /tmp
    try mount -t tmpfs -o mode=1777 tmpfs /var/tmp
    grep -q ' /dev devtmpfs ' /proc/mounts || try mount -t devtmpfs devtmpfs /dev
    try mkdir -p /dev/pts /dev/shm /dev/mqueue
    try mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    try mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
    try mount -t mqueue -o nosuid,nodev,noexec mqueue /dev/mqueue
    # What udev would make: links, and nodes whose module is loaded by opening them.
    try mkdir -p /dev/net
    try mknod -m 666 /dev/net/tun c 10 200
    try mknod -m 666 /dev/fuse c 10 229
    try mknod -m 660 /dev/loop-control c 10 237
    try ln -sfn /proc/self/fd /dev/fd
    try ln -sfn fd/0 /dev/stdin
    try ln -sfn fd/1 /dev/stdout
    try ln -sfn fd/2 /dev/stderr
@REBINDS@
    try umount @OWN@/host
    # From here on as systemd does it: mounts propagate, and cgroup 2 is one tree
    # with the controllers enabled and no process in its root.
    try mount --make-rshared /
    try mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot \
        cgroup2 /sys/fs/cgroup
    try mkdir /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs || die "cannot leave the root cgroup"
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        case $controller in
            cpu | cpuset | io | memory | pids)
                echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control ||
                    die "cannot enable the $controller controller" ;;
        esac
    done
    ulimit -Hn 524288
    echo craterun-uml >/proc/sys/kernel/hostname
    try ip link set lo up
    printf '#!/bin/sh\nexec %s "$@"\n' @MODPROBE@ >@OWN@/modprobe
    try chmod 755 @OWN@/modprobe
    echo @OWN@/modprobe >/proc/sys/kernel/modprobe
    try mkdir -p -m 700 @DIRECTORIES@
    try cd @CWD@
    # Opened before stty sets it: the last close may forget the settings. Raw: the
    # line passes bytes as they are, "\n" does not become "\r\n".
    exec 4>/dev/ttyS0 || die "no serial line"
    try stty -F /dev/ttyS0 raw -echo
    # COMMAND writes to a pipe and not to the line itself, so that it sees no
    # terminal, just as in a CI job.
    try mkfifo @OWN@/output
    cat <@OWN@/output >&4 &
    pump=$!
    exec 3>@OWN@/output
    echo @READY@ >&2
    setsid --wait env -i @ENVIRONMENT@ @COMMAND@ </dev/null >&3 2>&1 3>&- 4>&-
    code=$?
    # The pump ends when nobody has the pipe open any more, so a daemon that was
    # left behind would keep it.
    exec 3>&-
    kill_the_rest
    wait "$pump" || die "the output was cut off"
    printf '\000craterun-uml %s exit %d\n' @TOKEN@ "$code" >&4
    # Closing the line waits until it is drained.
    exec 4>&-
    poweroff
}
main
"""


@dataclass(frozen=True)
class Plan:
    """What to run in the guest, and how."""

    command: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    token: str
    #: Directories that must be seen in the guest though they lie in /tmp or so.
    needed: tuple[str, ...]
    #: How to run the guest kernel's modprobe.
    modprobe: tuple[str, ...]


def kernel_command(
    kernel: str, *, memory: str, init: str, line_fd: int, uml_dir: str, disk: str
) -> list[str]:
    """Return the host command that boots ``kernel`` into the script ``init``.

    ``line_fd`` is the descriptor that gets the first serial line's output;
    console and kernel messages go to standard output. ``disk`` is a file that
    the guest has as a disk.
    """
    return [
        kernel,
        f"mem={memory}",
        "root=none",
        "rootfstype=hostfs",
        "hostfs=/",
        "rw",
        # The kernel splits its command line at spaces that are not in quotes.
        f'init="{init}"',
        "con=null",
        "con0=null,fd:1",
        f"ssl0=null,fd:{line_fd}",
        # Else it makes a directory in the home directory.
        f"uml_dir={uml_dir}",
        f'ubd0="{disk}"',
        # Without it a guest's reboot(2) would boot once more.
        "noreboot",
        # A kernel that has stumbled proves nothing: end it there.
        "oops=panic",
        # Without it SELinux is on (with no policy) and labels every file.
        "lsm=capability",
    ]


def guest_environment(host: Mapping[str, str], executable: str) -> dict[str, str]:
    """Return COMMAND's environment, made from the host's.

    The interpreter's directory comes first in PATH, for ``python`` and for the
    scripts of a virtual environment that is in use but not activated.
    """
    kept = {
        name: value
        for name, value in host.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    path = kept.get("PATH") or os.defpath
    return kept | {
        "PATH": os.pathsep.join([os.path.dirname(executable), path]),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp/home",
        "TMPDIR": "/tmp",
        "XDG_RUNTIME_DIR": "/run/user/0",
        "CRATERUN_ROOT": "/run/craterun",
        IN_UML_VARIABLE: "1",
    }


def resolve_command(command: Sequence[str], executable: str) -> tuple[str, ...]:
    """Put this interpreter where COMMAND begins with ``python``."""
    if command[0] in ("python", "python3"):
        return (executable, *command[1:])
    return tuple(command)


def covered_paths(needed: Iterable[str], covered: Sequence[str] = COVERED) -> list[str]:
    """Return the paths that ``covered`` hides, without those inside another."""
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in needed}):
        hidden = any(_inside(path, directory) for directory in covered)
        if hidden and not any(_inside(path, other) for other in found):
            found.append(path)
    return found


def _inside(path: str, directory: str) -> bool:
    return os.path.commonpath([path, directory]) == directory


def _words(values: Iterable[str]) -> str:
    return " ".join(shlex.quote(value) for value in values)


def init_script(plan: Plan) -> str:
    """Return the shell script that is the guest's first process."""
    rebinds = []
    for path in covered_paths(plan.needed):
        rebinds.append(f"    try mkdir -p {shlex.quote(path)}")
        rebinds.append(
            f"    try mount --bind {shlex.quote(f'{_OWN}/host{path}')} {shlex.quote(path)}"
        )
    environment = plan.environment
    words = {
        "FAILED": shlex.quote(FAILED.decode()),
        "READY": shlex.quote(READY.decode()),
        "OWN": _OWN,
        "REBINDS": "\n".join(rebinds),
        # Quoted twice: it is text in a shell script that the script writes.
        "MODPROBE": shlex.quote(_words(plan.modprobe)),
        "DIRECTORIES": _words([environment["HOME"], environment["XDG_RUNTIME_DIR"]]),
        "CWD": shlex.quote(plan.cwd),
        "ENVIRONMENT": _words(f"{name}={value}" for name, value in environment.items()),
        "COMMAND": _words(plan.command),
        "TOKEN": shlex.quote(plan.token),
    }
    # One pass over the template, so that an "@NAME@" in a value stays as it is.
    return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], _INIT)
