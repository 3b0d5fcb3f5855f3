"""The contenders: how each of them runs /bin/true in a container, many times.

Each gets the same rootfs and, as far as it is able to, makes the same
namespaces and mounts.  A contender that is not installed says so through
:meth:`Contender.missing`; nobody may drop it silently.
"""

from __future__ import annotations

import abc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.ground import (
    CGROUP_ROOT,
    BenchError,
    craterun_state,
    fresh,
    make_rootfs,
    own_cgroup,
    session,
)

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
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

    def craterun(self) -> str:
        """Give the limits as `_craterun_rate.py` takes them."""
        result: dict[str, int] = {}
        if self.memory is not None:
            result["memory"] = self.memory
        if self.pids is not None:
            result["pids"] = self.pids
        if self.cpus is not None:
            result |= {"cpu_period": 100_000, "cpu_quota": int(self.cpus * 100_000)}
        return json.dumps(result)


@dataclass(frozen=True)
class Bench:
    """What the contenders of one place share: a work directory with a rootfs."""

    work: Path
    cgroup: str
    limits: Limits = field(default_factory=Limits)

    @property
    def rootfs(self) -> Path:
        """The root filesystem of every container."""
        return self.work / "rootfs"

    def prepare(self) -> None:
        """Make the rootfs, and the files that are bound into it."""
        make_rootfs(self.rootfs)
        files = self.work / "files"
        files.mkdir()
        (files / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (files / "hostname").write_text("bench\n")
        (files / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def oci_config(
    bench: Bench, name: str, command: Sequence[str] = ("/bin/true",)
) -> dict[str, object]:
    """Give an OCI runtime configuration that asks for what floor.c does."""
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
    devpts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
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


def _own_name(contender: str) -> str:
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
    """One way of running a container with /bin/true in it."""

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
        with own_cgroup(_own_name(self.name)) as cgroup:
            own = Bench(bench.work, cgroup, bench.limits)
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
        command += ["--", "/bin/true"]
        return xargs(command, [f"bwrap-{n}" for n in range(count)], concurrency, hide_v2=False)


def reported_seconds(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    """Run a program that times itself, and give the seconds in its JSON report."""
    with session(command, env=env) as process:
        said, _ = process.communicate()
    try:
        return float(json.loads(said)["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{command[0]} printed no report, but {said!r}") from error


class Floor(Contender):
    """floor.c, compiled at run time: the system calls alone."""

    name = "floor"
    program = "cc"

    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Compile it unless that is done already, and run it."""
        binary = bench.work / "floor"
        if not binary.exists():
            sources = [HERE / "floor.c", HERE / "floor_child.c"]
            subprocess.run(["cc", "-O2", "-Wall", "-o", binary, *sources], check=True)
        with own_cgroup(_own_name(self.name)) as cgroup:
            return reported_seconds([binary, bench.rootfs, str(count), str(concurrency), cgroup])


def craterun_missing() -> str | None:
    """Say why craterun's library cannot be imported, or None."""
    script = "from craterun import Spec, Supervisor"
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=craterun_env(), capture_output=True, text=True, check=False)
    return said.stderr.strip().rpartition("\n")[2] or "import failed" if said.returncode else None


def craterun_env() -> dict[str, str]:
    """Give the environment in which Python finds the craterun of this checkout."""
    # Python may write its bytecode, as it would for anybody: the benchmark has
    # to see the start of helper processes at the price users pay for it.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(CHECKOUT)}


class Craterun(Contender):
    """craterun: one supervisor, in a process of its own, starts all containers."""

    name = "craterun"
    program = sys.executable
    limits = True

    def missing(self) -> str | None:
        """Say if the package cannot be imported."""
        return craterun_missing()

    def seconds(self, bench: Bench, count: int, concurrency: int) -> float:
        """Run the loop of _craterun_rate.py in a fresh state root."""
        script = HERE / "_craterun_rate.py"
        sizes = [str(count), str(concurrency)]
        with craterun_state(bench.work) as state:
            command: list[str | Path] = [sys.executable, script, bench.rootfs, *sizes, state]
            command.append(bench.limits.craterun())
            return reported_seconds(command, craterun_env())


def contenders() -> dict[str, Contender]:
    """Give all contenders by name, in the order reports list them."""
    # crun refuses hosts that have v1 and v2 hierarchies side by side.
    every = (
        Craterun(),
        OciRuntime("crun", hide_v2=True),
        OciRuntime("runc", hide_v2=False),
        Bubblewrap(),
        Floor(),
    )
    return {contender.name: contender for contender in every}
