"""State that was edited, cut short, left behind by a crash, or never could be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craterun import Spec, Supervisor
from tests.containers import helpers
from tests.containers.helpers import (
    SLEEP,
    Cli,
    Gate,
    Live,
    mount_namespace,
    the_complaint,
    wait_exit,
)

cli = helpers.cli
make_gate = helpers.make_gate

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def ended(cli: Cli, rootfs: Path) -> str:
    """Id of a container named ``victim`` that ended well, for a test to damage."""
    return cli.ok("run", "--rootfs", str(rootfs), "--name", "victim", "--", "echo", "hi").strip()


@pytest.fixture
def good(cli: Cli, rootfs: Path) -> str:
    """Id of another container, which no damage to the first may touch."""
    return cli.ok("run", "--rootfs", str(rootfs), "--", "true").strip()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no container."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def edit(cli: Cli, container_id: str, changes: dict[str, object]) -> None:
    """Change fields of metadata.json, as a person or a script might."""
    record = {**cli.record(container_id), **changes}
    cli.metadata(container_id).write_text(json.dumps(record))


def statuses(cli: Cli) -> dict[str, str]:
    """What the table of ``ps`` says, by id."""
    lines = cli.ok("ps").splitlines()
    start, end = lines[0].index("STATUS"), lines[0].index("CREATED")
    return {line.split()[0]: line[start:end].strip() for line in lines[1:]}


# --- after a crash --------------------------------------------------------------------------------


def crash(live: Live) -> None:
    """Kill supervisor and keeper, so that neither can help the other; the container dies, too."""
    keeper = int(live.status()["PPid"])
    supervisor = int(Live(keeper).status()["PPid"])
    os.kill(keeper, signal.SIGSTOP)
    for pid in (supervisor, keeper):
        os.kill(pid, signal.SIGKILL)
    for pid in (supervisor, keeper, live.pid):
        wait_exit(pid)


@pytest.mark.cgroup_v2
def test_after_supervisor_and_keeper_were_killed_the_container_is_lost(
    cli: Cli, rootfs: Path, ended: str
) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--name", "crashed", "--", "sh", "-c",
                      "echo begun; exec sleep 1000000")  # fmt: skip
    cgroups = live.cgroups()
    waiting = cli.start("wait", "crashed")
    crash(live)
    assert statuses(cli)[live.id] == "lost"
    assert statuses(cli)[ended] == "stopped (0)"
    assert cli.ok("ps", "-q", "--running") == ""
    inspected = json.loads(cli.ok("inspect", "crashed"))[0]
    assert (inspected["status"], inspected["running"]) == ("lost", False)
    assert "not running" in cli.refused("exec", live.id, "--", "true")
    assert "not running" in cli.refused("kill", live.id)
    assert waiting.communicate() == (b"?\n", b"")
    assert cli.ok("wait", live.id) == "?\n"
    assert cli.ok("stop", live.id) == f"{live.id}\n"
    assert cli.ok("logs", live.id) in ("", "begun\n")
    assert cli.ok("rm", "crashed") == f"{live.id}\n"
    assert not [directory for directory in cgroups if directory.exists()]
    cli.ok("run", "--rootfs", str(rootfs), "--name", "crashed", "--", "true")


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_process_is_the_container_only_with_its_start_time_and_boot(
    cli: Cli, ended: str, bystander: subprocess.Popen[bytes]
) -> None:
    began = start_time(bystander.pid)
    right = {"status": "running", "pid": bystander.pid, "start_time": began, "boot_id": BOOT_ID}
    edit(cli, ended, {**right, "finished": None, "exit_code": None})
    assert statuses(cli)[ended] == "running"
    assert "running" in cli.refused("rm", ended)
    other_boot = "00000000-0000-4000-8000-000000000000"
    for wrong in ({"start_time": began + 1}, {"start_time": 0}, {"boot_id": other_boot},
                  {"boot_id": ""}, {"pid": None}, {"boot_id": None}):  # fmt: skip
        edit(cli, ended, {**right, **wrong})
        assert statuses(cli)[ended] == "lost", wrong
        assert "not running" in cli.refused("kill", ended)
        cli.ok("stop", "--time", "0", ended)
    assert "not running" in cli.refused("exec", ended, "--", "true")
    cli.ok("rm", "--force", ended)
    assert bystander.poll() is None


def test_a_zombie_is_not_a_running_container(cli: Cli, ended: str) -> None:
    with subprocess.Popen(["true"]) as process:
        wait_exit(process.pid)
        began = start_time(process.pid)
        edit(cli, ended, {"status": "running", "pid": process.pid, "start_time": began})
        assert statuses(cli)[ended] == "lost"


# --- metadata.json --------------------------------------------------------------------------------


def _replace_by(kind: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        if kind == "directory":
            path.mkdir()
            (path / "inside").touch()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "symlink":
            path.symlink_to("/etc/passwd")
        elif kind == "loop":
            path.symlink_to(path.name)
        else:
            os.utime(path.parent, (0, 0))  # a young folder may be one that is just being made

    return damage


def _rewrite(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(how(path.read_bytes())), None)[1]


def _change(**changes: object) -> Callable[[Path], None]:
    return _rewrite(lambda old: json.dumps({**json.loads(old), **changes}).encode())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": _rewrite(lambda old: b""),
    "cut in half": _rewrite(lambda old: old[: len(old) // 2]),
    "one byte short": _rewrite(lambda old: old.rstrip()[:-1]),
    "something behind": _rewrite(lambda old: old + b"}"),
    "noise": _rewrite(lambda old: bytes(range(256)) * 50),
    "zeros": _rewrite(lambda old: bytes(len(old))),
    "a list": _rewrite(lambda old: b"[]"),
    "nested deeply": _rewrite(lambda old: b'{"x":' + b"[" * 200_000),
    "a field of another type": _change(command="a string"),
    "an unknown status": _change(status="\x1b[31m"),
    "no date": _change(created="yesterday"),
    "of a newer format": _change(format=99),
    "of another container": _change(id="0123456789abcdef"),
    "missing": _replace_by("nothing"),
    "a directory": _replace_by("directory"),
    "a fifo": _replace_by("fifo"),
    "a symlink": _replace_by("symlink"),
    "a symlink to itself": _replace_by("loop"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_record_is_named_and_breaks_nothing_else(
    what: str, cli: Cli, rootfs: Path, good: str, ended: str
) -> None:
    DAMAGES[what](cli.metadata(ended))
    for arguments in (("ps",), ("ps", "--format", "json")):
        listed = cli(*arguments)
        assert good in listed.stdout.decode()
        assert ended not in listed.stdout.decode()
        listed.stdout = b""
        assert ended in the_complaint(listed, listed.returncode)
    for command in ("rm", "kill", "stop"):
        assert ended in cli.refused(command, ended)
    assert cli.ids() == {ended, good}
    assert cli.ok("rm", "--force", ended) == f"{ended}\n"
    assert cli.ok("ps", "-q") == f"{good}\n"
    cli.ok("run", "--rootfs", str(rootfs), "--name", "victim", "--", "true")
    assert Path("/etc/passwd").is_file()


EDITS: dict[str, dict[str, object]] = {
    "a time without zone": {"created": "2026-01-01T00:00:00"},
    "a time far away": {"created": "9999-12-31T23:59:59Z", "finished": "0001-01-01T00:00:00Z"},
    "a pid that no pid can be": {"status": "running", "pid": 1 << 62, "boot_id": BOOT_ID},
    "a negative pid": {"status": "running", "pid": -1, "boot_id": BOOT_ID},
    "pid 0": {"status": "running", "pid": 0, "boot_id": BOOT_ID},
    "an empty command": {"command": []},
    "control characters": {"command": ["\x1b[2J\n\x00"], "name": "\x1b]0;x\x07"},
    "a name with NUL": {"name": "a\0b"},
    "a name that is a path": {"name": "../../../../../../etc/passwd"},
    "a long name": {"name": "n" * 100_000},
    "an absurd exit code": {"exit_code": 10**12, "signal": -5},
    "no end": {"status": "stopped", "exit_code": None, "finished": None},
    "foreign cgroups": {"cgroups": ["/sys/fs/cgroup", "/"]},
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_record_confuses_nothing(what: str, cli: Cli, good: str, ended: str) -> None:
    edit(cli, ended, EDITS[what])
    for arguments in (("ps",), ("ps", "--format", "json"), ("inspect", ended)):
        result = cli(*arguments)
        shown = result.stdout.decode()
        assert ended in shown or ended in result.stderr.decode()
        assert shown.replace("\n", "").isprintable()
        assert arguments[0] != "ps" or good in shown
    cli("kill", ended)
    cli("stop", "--time", "0", ended)
    assert cli.ok("rm", "--force", ended) == f"{ended}\n"
    assert cli.ids() == {good}
    assert Path("/etc/passwd").is_file()


@pytest.mark.cgroup_v2
@pytest.mark.parametrize("what", ["empty", "missing", "a directory"])
def test_a_running_container_with_a_damaged_record_is_removed_whole(
    what: str, cli: Cli, rootfs: Path
) -> None:
    script = "sleep 1000000 & exec sleep 1000000"
    live = cli.detach("--rootfs", str(rootfs), "--name", "victim", "--", "sh", "-c", script)
    processes, cgroups = live.siblings(), live.cgroups()
    DAMAGES[what](cli.metadata(live.id))
    assert live.id in cli("rm", live.id).stderr.decode()
    assert live.proc.exists()
    assert cli.ok("rm", "--force", live.id) == f"{live.id}\n"
    for process in processes:
        wait_exit(process.pid)
    assert cli.ids() == set()
    assert not [directory for directory in cgroups if directory.exists()]


async def test_metadata_is_whole_at_every_instant(state_root: Path, rootfs: Path) -> None:
    stop, statuses_seen = threading.Event(), set()
    broken: list[str] = []

    def read() -> None:
        while not stop.is_set():
            for path in state_root.glob("*/metadata.json"):
                try:
                    statuses_seen.add(json.loads(path.read_bytes())["status"])
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    broken.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        async with Supervisor(state_root) as supervisor:
            for _ in range(40):
                container = await supervisor.start(Spec(command=("true",), rootfs=str(rootfs)))
                await container.wait()
    finally:
        stop.set()
        reader.join()
    assert broken == []
    assert {"running", "stopped"} <= statuses_seen


def test_a_container_whose_folder_is_deleted_goes_on_to_its_end(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    ready, go = make_gate(rootfs / "ready"), make_gate(rootfs / "go")
    script = "echo one; echo > /ready; read x < /go; echo two; exit 8"
    process = cli.start("run", "--rootfs", str(rootfs), "-a", "--", "sh", "-c", script)
    ready.wait()
    while cli.state_root.exists():  # the container may be writing its first line at this moment
        shutil.rmtree(cli.state_root, ignore_errors=True)
    go.open()
    output, complaint = process.communicate()
    assert (process.returncode, output) == (8, b"one\ntwo\n")
    assert b"Traceback" not in complaint
    assert cli.ok("ps", "-q") == ""


# --- the state directory itself -------------------------------------------------------------------


def test_foreign_files_in_the_state_directory_are_left_alone(
    cli: Cli, rootfs: Path, good: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = cli.state_root
    (root / "notes.txt").write_text("mine\n")
    (root / "lost+found").mkdir(mode=0o700)
    (root / "0123456789ABCDEF").mkdir()
    (root / "0123456789abcde").mkdir()
    (root / "1111111111111111").write_text("a file named like an id\n")
    (root / "2222222222222222").symlink_to(tmp_path / "elsewhere")
    (root / "3333333333333333").symlink_to("/nowhere")
    os.mkfifo(root / "4444444444444444")
    (root / "caf\udce9").mkdir()
    before = sorted(os.listdir(root))
    assert cli.ok("ps", "-q") == f"{good}\n"
    for name in ("1111111111111111", "2222222222222222", "3333333333333333", "notes.txt"):
        for command in (("inspect",), ("logs",), ("rm", "--force")):
            result = cli(*command, name)
            assert (result.returncode, name in result.stderr.decode()) == (125, True)
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "true")
    assert sorted(set(os.listdir(root)) - {".removed", ".names", ".events"}) == sorted(
        set(before) - {".removed", ".names", ".events"}
    )
    assert os.listdir(tmp_path / "elsewhere") == []


def test_damaged_names_hinder_only_themselves(cli: Cli, rootfs: Path, ended: str) -> None:
    names = cli.state_root / ".names"
    (names / "dangling").symlink_to("0000000000000000")
    (names / "loop").symlink_to("loop")
    (names / "outside").symlink_to("/etc")
    (names / "empty").touch()
    (names / "folder").mkdir()
    for name in ("dangling", "loop", "outside", "empty", "folder"):
        assert "no container" in cli.refused("rm", "--force", name)
    for name in ("dangling", "loop", "outside"):
        cli.ok("run", "--rootfs", str(rootfs), "--name", name, "--", "true")
    for name in ("empty", "folder"):
        assert name in cli.refused("run", "--rootfs", str(rootfs), "--name", name, "--", "true")
    assert cli.ok("wait", "victim", "dangling", "loop", "outside") == "0\n" * 4


@pytest.mark.parametrize(
    "place", ["a file", "below a file", "a dangling symlink", "a loop", "/proc"]
)
def test_a_state_directory_that_cannot_be_one_is_refused(
    place: str, cli: Cli, tmp_path: Path, rootfs: Path
) -> None:
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "dangling").symlink_to("/proc/nowhere")
    (tmp_path / "loop").symlink_to("loop")
    path = {
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file/state"),
        "a dangling symlink": str(tmp_path / "dangling"),
        "a loop": str(tmp_path / "loop"),
        "/proc": "/proc/state",
    }[place]
    for option in ("--attach", "--detach"):
        message = cli.refused("--root", path, "run", option, "--rootfs", str(rootfs), "--", "true")
        assert path in message
        assert "--root" in message
    cli("--root", path, "ps")
    the_complaint(cli("--root", path, "rm", "--force", "x"), 125)
    assert (tmp_path / "file").read_text() == "mine\n"


def test_a_read_only_state_directory_can_be_listed_but_not_written(
    cli: Cli, rootfs: Path, ended: str
) -> None:
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"'
    with mount_namespace(script, cli.state_root) as aside:
        inside = cli.behind(*aside.enter)
        assert statuses(inside) == {ended: "stopped (0)"}
        assert inside.ok("logs", ended) == "hi\n"
        assert inside.ok("wait", "victim") == "0\n"
        assert "Read-only" in inside.refused("run", "--rootfs", str(rootfs), "--", "true")
        assert "Read-only" in inside.refused("run", "-d", "--rootfs", str(rootfs), "--", "true")
        assert "Read-only" in inside.refused("rm", ended)
    assert cli.ids() == {ended}
    assert cli.log(ended) == b"hi\n"
