"""The peers: how each of them runs a command in a container, many times.

Each gets the same root filesystem and, as far as it is able to, makes the same namespaces and
mounts. One that is not installed says so through `Contender.missing`; nobody may drop it silently.
"""

from __future__ import annotations

import abc
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from craterun.bench.ground import CGROUP_ROOT, fresh, own_cgroup, scratch, session

V2_MOUNT = CGROUP_ROOT / "unified"

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
ENVIRONMENT = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Limits:
    """Resource limits of one container; None is no limit."""

    memory: int | None = None
    pids: int | None = None
    cpus: float | None = None

    def resources(self) -> dict[str, object]:
        """Give the limits as the `linux.resources` of an OCI configuration."""
        result: dict[str, object] = {}
        if self.memory is not None:
            result["memory"] = {"limit": self.memory}
        if self.pids is not None:
            result["pids"] = {"limit": self.pids}
        if self.cpus is not None:
            result["cpu"] = {"period": 100_000, "quota": int(self.cpus * 100_000)}
        return result


@dataclass(frozen=True)
class Bench:
    """What the contenders of one place share.

    :ivar work: a directory for their bundles and states
    :ivar cgroup: the one to make cgroups in, from the root of the hierarchies
    :ivar root: the root filesystem of every container; default: ``rootfs`` in ``work``
    :ivar binds: directories of the host that are shown read-only at the same place inside
    """

    work: Path
    cgroup: str
    limits: Limits = field(default_factory=Limits)
    command: tuple[str, ...] = ("/bin/true",)
    root: Path | None = None
    binds: tuple[str, ...] = ()

    @property
    def rootfs(self) -> Path:
        """The root filesystem of every container."""
        return self.root or self.work / "rootfs"

    def prepare_files(self) -> None:
        """Make the files that are bound into every container's /etc."""
        files = self.work / "files"
        files.mkdir()
        (files / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (files / "hostname").write_text("bench\n")
        (files / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def oci_config(bench: Bench, name: str, command: Sequence[str] | None = None) -> dict[str, object]:
    """Give an OCI runtime configuration that asks for what craterun makes."""
    capabilities = list(CAPABILITIES)
    plain = ["nosuid", "noexec", "nodev"]

    def mount(target: str, kind: str, *options: str) -> dict[str, object]:
        return {"destination": target, "type": kind, "source": kind, "options": list(options)}

    binds: list[dict[str, object]] = [
        {
            "destination": f"/etc/{file}",
            "type": "bind",
            "source": str(bench.work / "files" / file),
            "options": ["bind", "rprivate"],
        }
        for file in ("hosts", "hostname", "resolv.conf")
    ]
    binds += [
        {
            "destination": path,
            "type": "bind",
            "source": path,
            "options": ["rbind", "rprivate", "ro"],
        }
        for path in bench.binds
    ]
    devpts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command or bench.command),
            "env": [ENVIRONMENT],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "root": {"path": str(bench.rootfs), "readonly": False},
        "hostname": name,
        "mounts": [
            mount("/proc", "proc", *plain),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755"),
            mount("/dev/pts", "devpts", *devpts),
            mount("/dev/shm", "tmpfs", *plain, "mode=1777", "size=64m"),
            mount("/dev/mqueue", "mqueue", *plain),
            mount("/sys", "sysfs", *plain, "ro"),
            *binds,
        ],
        "linux": {
            "cgroupsPath": f"/{bench.cgroup}/{name}",
            "resources": bench.limits.resources(),
            "namespaces": [
                {"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")
            ],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }


def own_name(contender: str) -> str:
    """A cgroup name that is nobody else's."""
    return f"craterun-bench-{os.getpid()}-{contender}"


def xargs(command: Sequence[str], names: Sequence[str], concurrency: int, hide_v2: bool) -> float:
    """Run the command once per name ("@" in it), and give the seconds it took.

    The time runs from the first name to the end of the last command: one shell
    prepares (with hide_v2: in a mount namespace without the v2 mount), says
    "ready", and becomes xargs, which waits for the names.
    """
    prepare = 'umount -l "$0" && ' if hide_v2 else ""
    script = prepare + 'echo ready && exec xargs -P "$1" -I @ "${@:2}" >/dev/null'
    shell = ["bash", "-c", script, str(V2_MOUNT), str(concurrency), *command]
    if hide_v2:
        shell = ["unshare", "--mount", "--propagation", "private", "--", *shell]
    with session(shell) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            # Leaving the context reports why, with the shell's own words.
            process.wait()
            return 0.0
        lines = "".join(f"{name}\n" for name in names)
        begin = time.perf_counter()
        process.stdin.write(lines)
        process.stdin.close()
        process.wait()
        return time.perf_counter() - begin


class Contender(abc.ABC):
    """One way of running a command in a container."""

    name: str
    program: str
    limits = False
    """Whether it sets the limits that it is asked for."""

    def missing(self) -> str | None:
        """Say what is not installed, or None."""
        return None if shutil.which(self.program) else f"{self.program} is not installed"

    def version(self) -> str:
        """Give the first line of what the program says its version is."""
        command = [self.program, "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        return (said.stdout or said.stderr).partition("\n")[0].strip()

    @abc.abstractmethod
    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Run count containers, so many at a time, and give the time it took."""


class OciRuntime(Contender):
    """A runtime with an OCI command line; every container has its own bundle."""

    limits = True

    def __init__(self, program: str, hide_v2: bool) -> None:
        """Name the program, and say whether it must not see the v2 mount."""
        self.name = self.program = program
        self._hide_v2 = hide_v2

    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Run `PROGRAM --root DIR run -b BUNDLE NAME` once per container."""
        work = fresh(bench.work, self.name)
        names = [f"{self.name}-{number}" for number in range(count)]
        with own_cgroup(own_name(self.name)) as cgroup:
            own = replace(bench, cgroup=cgroup)
            for name in names:
                (work / "bundles" / name).mkdir(parents=True)
                config = json.dumps(oci_config(own, name))
                (work / "bundles" / name / "config.json").write_text(config)
            command = [self.program, "--root", f"{work}/state", "run"]
            command += ["--bundle", f"{work}/bundles/@", "@"]
            hide = self._hide_v2 and V2_MOUNT.is_mount()
            return xargs(command, names, concurrency, hide)


class Bubblewrap(Contender):
    """bwrap: the namespaces and a few mounts, without cgroups and without state."""

    name = program = "bwrap"

    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Run bwrap once per container."""
        command = [self.program, "--unshare-ipc", "--unshare-pid", "--unshare-net"]
        command += ["--unshare-uts", "--unshare-cgroup", "--as-pid-1", "--new-session"]
        command += ["--hostname", "@", "--cap-drop", "ALL"]
        for capability in CAPABILITIES:
            command += ["--cap-add", capability]
        command += ["--bind", str(bench.rootfs), "/", "--proc", "/proc", "--dev", "/dev"]
        for path in bench.binds:
            command += ["--ro-bind", path, path]
        command += ["--", *bench.command]
        return xargs(command, [f"bwrap-{n}" for n in range(count)], concurrency, hide_v2=False)


class Podman(Contender):
    """podman run, with conmon and a log file, on storage of its own."""

    name = program = "podman"
    limits = True

    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Run `podman run --rm` once per container."""
        work = fresh(bench.work, self.name)
        hide = V2_MOUNT.is_mount()
        with (
            # It refuses paths of more than 50 characters here.
            scratch("bench-", "/tmp") as runroot,
            # Left first: nothing runs any more when its files are removed.
            own_cgroup(own_name(self.name)) as cgroup,
        ):
            command = [self.program, "--root", f"{work}/root", "--runroot", str(runroot)]
            # What it and its runtime keep in /run otherwise stays there if they are interrupted.
            command += ["--tmpdir", f"{runroot}/tmp", "--runtime-flag", f"root={runroot}/oci"]
            command += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "run", "--rm"]
            command += ["--name", "@", "--network", "none", "--log-driver", "k8s-file"]
            command += ["--cgroup-parent", f"/{cgroup}", *_modest_ulimits(), *_podman(bench.limits)]
            for path in bench.binds:
                command += ["--volume", f"{path}:{path}:ro"]
            command += ["--rootfs", str(bench.rootfs), *bench.command]
            names = [f"bench-{number}" for number in range(count)]
            return xargs(command, names, concurrency, hide)


def _modest_ulimits() -> list[str]:
    """Podman's defaults are above the hard limits of some hosts, and then it starts nothing."""
    result: list[str] = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(number)[1]
        limit = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
        result += ["--ulimit", f"{name}={limit}:{limit}"]
    return result


def _podman(limits: Limits) -> list[str]:
    options = {"--memory": limits.memory, "--pids-limit": limits.pids, "--cpus": limits.cpus}
    return [f"{option}={value}" for option, value in options.items() if value is not None]


def peers() -> dict[str, Contender]:
    """All contenders of other makes, by name, in the order that reports list them in."""
    # crun refuses hosts that have v1 and v2 hierarchies side by side.
    every = (
        OciRuntime("crun", hide_v2=True),
        OciRuntime("runc", hide_v2=False),
        Bubblewrap(),
        Podman(),
    )
    return {peer.name: peer for peer in every}
