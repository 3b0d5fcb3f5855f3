"""podman, as far as it runs without an image, a network and a cgroup of systemd's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.ground import own_cgroup


def podman(
    work: Path,
    verb: str | None = None,
    cgroup: str = "",
    rootfs: Path | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """The beginning of a command line of podman with its state in ``work``.

    :param verb: run, with ``options`` and what it takes to run from ``rootfs``; the container's
        command has to follow. Default: any other command follows.
    """
    # runc, since crun refuses hybrid cgroups.
    command = [
        "podman", "--root", f"{work}/podman", "--runroot", f"{work}/podman.run",
        "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
    ]  # fmt: skip
    if verb is None:
        return command
    # A limit that the host has set lower than podman's default could not be raised.
    return [
        *command, verb, "--network", "none", "--log-driver", "k8s-file",
        "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
        "--cgroup-parent", f"/{cgroup}", *options, "--rootfs", str(rootfs),
    ]  # fmt: skip


def podman_missing(work: Path, rootfs: Path) -> str | None:
    """Say why podman cannot run a container here, or None."""
    if shutil.which("podman") is None:
        return "podman is not installed"
    with own_cgroup(f"{work.name}-podman") as cgroup:
        command = [*podman(work, "run", cgroup, rootfs, ["--rm"]), "/bin/true"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stderr.strip() or "it failed" if said.returncode else None
