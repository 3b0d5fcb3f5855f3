"""Containers of a user who is not root: in a user namespace, with the same commands."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

UID = 1000
RunAs = Callable[..., subprocess.CompletedProcess[bytes]]


def _closed_directories() -> list[Path]:
    """Directories on the way to the interpreter and this checkout that only root may pass."""
    roots = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parents[2]}
    closed = {
        parent
        for root in roots
        for parent in (root, *root.parents)
        if not parent.stat().st_mode & 0o001
    }
    return sorted(closed, key=lambda path: len(path.parts))


def _open_for_all(scratch: Path) -> str:
    """Shell commands that, in a mount namespace of their own, put an open directory in place of
    each closed one, with everything in it bound again: the test's user must reach the interpreter.
    """
    commands = ["set -e"]
    for number, path in enumerate(_closed_directories()):
        place, hold = shlex.quote(str(path)), shlex.quote(str(scratch / f"hold{number}"))
        commands += [
            f"mkdir -p {hold}",
            f"mount --rbind {place} {hold}",
            f"mount -t tmpfs -o mode=755 none {place}",
            f"for e in {hold}/* {hold}/.[!.]*; do t={place}/${{e##*/}}; "
            'if [ -L "$e" ]; then cp -P "$e" "$t"; '
            'elif [ -d "$e" ]; then mkdir "$t"; mount --rbind "$e" "$t"; fi; done',
        ]
    return "\n".join(commands)


@pytest.fixture
def as_user() -> Iterator[RunAs]:
    """Runs one shell script, in which ``craterun`` is the command line, as an ordinary user.

    A second argument is what root does in the same process before.
    """
    scratch = Path(tempfile.mkdtemp(prefix="rootless-"))
    home = scratch / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    scratch.chmod(0o755)

    def run(script: str, before: str = ":") -> subprocess.CompletedProcess[bytes]:
        command = f'craterun() {{ {shlex.quote(sys.executable)} -m craterun "$@"; }}\n{script}'
        checkout = Path(__file__).resolve().parents[2]
        drop = f"setpriv --reuid {UID} --regid {UID} --clear-groups"
        become = f"exec {drop} env HOME={home} sh -c {shlex.quote(command)}"
        environment = {k: v for k, v in os.environ.items() if k != "CRATERUN_ROOT"}
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c",
             f"{_open_for_all(scratch)}\ncd {shlex.quote(str(checkout))}\n{before}\n{become}"],
            capture_output=True,
            env=environment,
            timeout=120,
            check=False,
        )  # fmt: skip

    yield run
    shutil.rmtree(scratch)


def test_a_user_is_root_inside_and_nobody_else(as_user: RunAs) -> None:
    script = "id -u; cat /proc/self/uid_map; touch /tmp/x /run/y && echo written; ls /dev | wc -l"
    result = as_user(f"craterun run --attach -- sh -c {shlex.quote(script)}")
    assert (result.returncode, result.stderr) == (0, b"")
    uid, uid_map, written, devices = result.stdout.decode().splitlines()
    assert (uid, uid_map.split()) == ("0", ["0", str(UID), "1"])
    assert (written, int(devices)) == ("written", 14)


def test_state_is_kept_in_the_users_home(as_user: RunAs) -> None:
    result = as_user(
        "craterun run -- sh -c 'echo out; exit 4'; ls ~/.craterun/*; stat -c %u ~/.cr*"
    )
    container_id, *rest = result.stdout.decode().splitlines()
    assert len(container_id) == 16
    assert rest[-1] == str(UID)
    assert {"metadata.json", "stdout.log", "stderr.log"} <= set(rest)


def test_a_detached_container_is_entered_killed_and_removed(as_user: RunAs) -> None:
    result = as_user(
        "craterun run -d --name bg -- sleep 1000 >/dev/null; craterun ps --running -q | wc -l; "
        "craterun exec bg -- sh -c 'id -u; cat /proc/1/comm'; craterun exec bg -- sh -c 'exit 9'; "
        "echo $?; craterun kill bg >/dev/null; craterun wait bg; craterun rm bg >/dev/null; "
        "craterun ps -q | wc -l"
    )
    assert result.stderr == b""
    assert result.stdout.decode().split() == ["1", "0", "sleep", "9", "137", "0"]


def test_another_user_inside_is_refused_with_the_reason(as_user: RunAs) -> None:
    result = as_user("craterun run --user 1000 -- true")
    assert result.returncode == 125
    assert b"0 is the only user" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_the_hosts_programs_cannot_be_changed(as_user: RunAs) -> None:
    result = as_user("craterun run --attach -- sh -c 'touch /usr/x; mount -o remount,rw /usr'")
    assert result.returncode != 0
    assert b"Read-only file system" in result.stderr


def test_without_cgroups_top_works_stats_has_dashes_and_pause_says_why(as_user: RunAs) -> None:
    result = as_user(
        "craterun run -d --name bg -- sleep 1000 >/dev/null; craterun top bg; "
        "craterun stats --no-stream --interval 0; craterun pause bg; echo $?; "
        "craterun ps --running | grep -c running; craterun rm -f bg >/dev/null"
    )
    lines = result.stdout.decode().splitlines()
    assert lines[1].split()[:1] == ["1"]
    assert lines[1].split()[2:4] == ["root", "S"]
    assert lines[1].endswith("sleep 1000")
    assert lines[3].split() == ["bg", *["-"] * 10]
    assert lines[4:] == ["125", "1"]
    assert b"cannot be paused: no cgroup hierarchy" in result.stderr
    assert result.stderr.endswith(b"run craterun as root\n")
    assert result.stderr.count(b"\n") == 1


def test_a_users_server_looks_after_the_users_containers(as_user: RunAs) -> None:
    script = """
        mkfifo "$HOME/ready"
        craterun serve >"$HOME/ready" &
        read -r line <"$HOME/ready"
        id=$(craterun run --detach -- sleep 1000)
        pid=$(craterun ps --format json | grep '"pid"' | tr -dc 0-9)
        keeper=$(ps -o ppid= -p "$pid" | tr -d ' ')
        ps -o comm= -p "$keeper" -p "$(ps -o ppid= -p "$keeper" | tr -d ' ')" | sort
        craterun run --attach -- id -u
        craterun shutdown || craterun rm --force "$id"
        wait $!
        echo $?
        craterun wait "$id"
    """
    result = as_user(script)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().split() == ["craterun-keeper", "craterun-serve", "0", "0", "137"]


def test_a_users_batch_borrows_the_supervisor_of_the_users_server(as_user: RunAs) -> None:
    script = """
        mkfifo "$HOME/ready"
        craterun serve >"$HOME/ready" &
        read -r line <"$HOME/ready"
        {
            echo '{"command": ["sh", "-c", "cat; id -u"], "stdin": "text "}'
            echo '{"name": "it", "command": ["sleep", "1000"]}'
        } >"$HOME/jobs"
        craterun batch --quiet --rm --capture 100 --jobs 1 "$HOME/jobs" >"$HOME/results" &
        batch=$!
        while ! craterun top it >"$HOME/top" 2>/dev/null; do :; done
        pid=$(craterun inspect it | sed -n 's/.*"pid": \\([0-9]*\\),/\\1/p')
        keeper=$(ps -o ppid= -p "$pid" | tr -d ' ')
        ps -o comm= -p "$(ps -o ppid= -p "$keeper" | tr -d ' ')"
        craterun kill it >"$HOME/killed"
        wait "$batch"
        echo $?
        grep -o '"stdout":"[^"]*"' "$HOME/results"
        craterun shutdown
    """
    result = as_user(script)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == [
        "craterun-serve", "1", '"stdout":"text 0\\n"', '"stdout":""',
    ]  # fmt: skip
