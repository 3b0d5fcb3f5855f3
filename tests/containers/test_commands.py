"""The commands that manage containers, and the options of run that go with them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun import __version__
from tests.containers import helpers
from tests.containers.helpers import (
    ID,
    SLEEP,
    Cli,
    Gate,
    Live,
    read_line,
    the_complaint,
    wait_exit,
    wait_reaped,
)

cli = helpers.cli
make_gate = helpers.make_gate

COLUMNS = ["CONTAINER ID", "PID", "STATUS", "CREATED", "COMMAND", "NAME"]
NOISE = bytes(range(256)) * 300


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container named ``one`` that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)


@pytest.fixture
def ended(cli: Cli, rootfs: Path) -> str:
    """Id of a container named ``over`` that ended with exit code 3."""
    result = cli("run", "--rootfs", str(rootfs), "--name", "over", "--", "sh", "-c", "exit 3")
    assert result.returncode == 3
    return result.stdout.decode().strip()


def table(text: str) -> list[dict[str, str]]:
    """What ``ps`` printed, by column."""
    header, *lines = text.splitlines()
    starts = [header.index(name) for name in COLUMNS]
    assert re.split(r"  +", header) == COLUMNS
    ends = [*starts[1:], None]
    return [
        {n: line[a:b].strip() for n, a, b in zip(COLUMNS, starts, ends, strict=True)}
        for line in lines
    ]


# --- ids, names, prefixes -------------------------------------------------------------------------


def test_id_is_16_hex_digits_and_names_the_folder(cli: Cli, ended: str, live: Live) -> None:
    assert ID.match(ended)
    assert ID.match(live.id)
    assert cli.ids() == {ended, live.id}


@pytest.mark.parametrize("how", ["id", "prefix", "one digit", "name"])
def test_any_unique_prefix_or_the_name_means_the_container(how: str, cli: Cli, live: Live) -> None:
    text = {"id": live.id, "prefix": live.id[:7], "one digit": live.id[0], "name": "one"}[how]
    assert json.loads(cli.ok("inspect", text))[0]["id"] == live.id
    assert cli.ok("exec", text, "--", "hostname") == f"{live.id[:12]}\n"
    cli.ok("logs", text)
    assert cli.ok("kill", text) == f"{live.id}\n"
    assert cli.ok("wait", text) == "137\n"
    assert cli.ok("stop", text) == f"{live.id}\n"
    assert cli.ok("rm", text) == f"{live.id}\n"


def test_an_ambiguous_prefix_lists_its_candidates(cli: Cli, ended: str) -> None:
    # Two ids with a common prefix do not come by chance: give a copy one.
    twin = f"{ended[:15]}{'0' if ended[15] != '0' else '1'}"
    folder = cli.state_root / twin
    folder.mkdir()
    (folder / "metadata.json").write_text(
        cli.metadata(ended).read_text().replace(ended, twin).replace('"over"', "null")
    )
    for command in ("inspect", "logs", "wait", "rm", "stop", "kill"):
        message = cli("rm" if command == "rm" else command, ended[:15])
        text = message.stderr.decode()
        assert message.returncode == 125
        assert ended in text
        assert twin in text
        assert "ambiguous" in text
    assert cli.ids() == {ended, twin}
    assert json.loads(cli.ok("inspect", ended))[0]["id"] == ended


def test_a_name_is_free_again_after_rm(cli: Cli, rootfs: Path, ended: str) -> None:
    message = cli.refused("run", "--rootfs", str(rootfs), "--name", "over", "--", "true")
    assert "over" in message
    assert ended in message
    assert cli.ids() == {ended}
    cli.ok("rm", "over")
    cli.ok("run", "--rootfs", str(rootfs), "--name", "over", "--", "true")


def test_a_name_that_looks_like_a_prefix_is_the_name(cli: Cli, rootfs: Path) -> None:
    names = "0123456789abcdef"
    for name in names[:3]:
        cli.ok("run", "--rootfs", str(rootfs), "--name", name, "--", "true")
    for name in names[:3]:
        assert json.loads(cli.ok("inspect", name))[0]["name"] == name


def test_root_option_and_variable_move_the_state(cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    for place in ("elsewhere", "deep/er"):
        folder = tmp_path / place
        found = cli.ok("--root", str(folder), "run", "--rootfs", str(rootfs), "--", "true").strip()
        assert (folder / found / "metadata.json").is_file()
        assert cli.ok("ps", "-q", f"--root={folder}") == f"{found}\n"
        assert cli.ok("ps", "-q", env={"CRATERUN_ROOT": str(folder)}) == f"{found}\n"
    assert cli.ids() == set()
    assert cli.ok("ps", "-q") == ""


# --- ps and inspect -------------------------------------------------------------------------------


def test_ps_shows_running_and_stopped_the_newest_first(cli: Cli, ended: str, live: Live) -> None:
    newest, oldest = table(cli.ok("ps"))
    assert newest.pop("CREATED").endswith(" ago")
    assert oldest.pop("CREATED").endswith(" ago")
    assert newest == {
        "CONTAINER ID": live.id, "PID": str(live.pid), "STATUS": "running",
        "COMMAND": "sleep 1000000", "NAME": "one",
    }  # fmt: skip
    assert oldest == {
        "CONTAINER ID": ended, "PID": "-", "STATUS": "stopped (3)", "COMMAND": "sh -c exit 3",
        "NAME": "over",
    }  # fmt: skip


def test_ps_quiet_and_running_and_json(cli: Cli, ended: str, live: Live) -> None:
    assert cli.ok("ps", "-q") == cli.ok("ps", "--quiet") == f"{live.id}\n{ended}\n"
    assert cli.ok("ps", "-q", "--running") == f"{live.id}\n"
    assert [row["NAME"] for row in table(cli.ok("ps", "--running"))] == ["one"]
    listed = json.loads(cli.ok("ps", "--format", "json"))
    assert [(entry["id"], entry["running"]) for entry in listed] == [
        (live.id, True),
        (ended, False),
    ]
    assert [entry["id"] for entry in json.loads(cli.ok("ps", "--running", "--format", "json"))] == [
        live.id
    ]


@pytest.mark.no_server
def test_ps_of_nothing_is_an_empty_list(cli: Cli) -> None:
    assert table(cli.ok("ps")) == []
    assert json.loads(cli.ok("ps", "--format", "json")) == []
    assert not cli.state_root.exists()


def test_ps_shows_a_container_killed_for_memory_as_oom(cli: Cli, ended: str) -> None:
    text = cli.metadata(ended).read_text()
    assert '"init_oom_killed": false' in text
    cli.metadata(ended).write_text(
        text.replace('"init_oom_killed": false', '"init_oom_killed": true')
    )
    assert table(cli.ok("ps"))[0]["STATUS"] == "oom"


def test_metadata_and_inspect_tell_everything(cli: Cli, rootfs: Path, live: Live) -> None:
    arguments = ("--rootfs", str(rootfs), "-e", "K=V", "-w", "/tmp", "-u", "alice", "--init")
    cli("run", *arguments, "--name", "full", "--hostname", "box", "--", "sh", "-c", "kill -9 $$")
    full, running = json.loads(cli.ok("inspect", "full", live.id))
    wanted = {
        "name": "full", "status": "stopped", "running": False, "rootfs": str(rootfs),
        "command": ["sh", "-c", "kill -9 $$"], "env": {"K": "V"}, "workdir": "/tmp",
        "user": "alice", "hostname": "box", "init": True, "exit_code": 137, "error": None,
    }  # fmt: skip
    assert {key: full[key] for key in wanted} == wanted
    assert full["created"] <= full["started"] <= full["finished"]
    assert (running["pid"], running["status"], running["running"]) == (live.pid, "running", True)
    start_time = int((live.proc / "stat").read_text().rpartition(")")[2].split()[19])
    assert running["start_time"] == start_time
    assert running["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert running["finished"] is None
    for entry in (full, running):
        content = cli.record(entry["id"])
        assert {key: entry[key] for key in content} == content
        assert "limits" in content
        assert cli.metadata(entry["id"]).read_text().count("\n") > 10, "readable by people"
        assert cli.metadata(entry["id"]).stat().st_mode & 0o777 == 0o600
        assert cli.metadata(entry["id"]).parent.stat().st_mode & 0o777 == 0o700


# --- logs -----------------------------------------------------------------------------------------


def test_logs_are_byte_exact_and_keep_the_streams_apart(cli: Cli, rootfs: Path) -> None:
    (rootfs / "noise").write_bytes(NOISE)
    script = "cat /noise; cat /noise /noise >&2; printf end"
    found = cli.ok("run", "--rootfs", str(rootfs), "--", "sh", "-c", script).strip()
    assert cli.log(found) == NOISE + b"end"
    assert cli.log(found, "stderr") == NOISE * 2
    result = cli("logs", found)
    assert (result.returncode, result.stdout) == (0, NOISE + b"end")
    assert result.stderr == NOISE * 2


def test_logs_of_a_running_container_show_what_came_so_far(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    said, go = make_gate(rootfs / "said"), make_gate(rootfs / "go")
    script = "echo first; echo told > /said; read x < /go; echo second"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    said.wait()
    assert cli.ok("logs", live.id) in ("", "first\n")
    go.open()
    cli.ok("wait", live.id)
    assert cli.ok("logs", live.id) == "first\nsecond\n"


# --- wait, kill, stop, rm -------------------------------------------------------------------------


def test_wait_prints_each_exit_code_in_order(cli: Cli, ended: str, live: Live) -> None:
    waiting = cli.start("wait", live.id, "over")
    cli.ok("kill", "-s", "KILL", live.id)
    assert waiting.communicate() == (b"137\n3\n", b"")
    assert waiting.returncode == 0
    assert cli.ok("wait", "over", "one", ended[:8]) == "3\n137\n3\n"


@pytest.mark.parametrize("text", ["USR1", "SIGUSR1", "usr1", "10"])
def test_kill_sends_the_signal_asked_for(text: str, cli: Cli, rootfs: Path) -> None:
    script = "trap 'echo got; exit 5' USR1; echo ready > /dev/stderr; sleep 1000000 & wait"
    process = cli.start("run", "--rootfs", str(rootfs), "-a", "--", "sh", "-c", script)
    assert process.stderr is not None
    assert helpers.read_some(process.stderr.fileno()) == b"ready\n"
    (container_id,) = cli.ids()
    assert cli.ok("kill", "-s", text, container_id) == f"{container_id}\n"
    assert process.communicate() == (b"got\n", b"")
    assert process.returncode == 5


def test_kill_and_exec_of_a_stopped_container_are_refused(cli: Cli, ended: str) -> None:
    assert "not running" in cli.refused("kill", ended)
    assert "not running" in cli.refused("exec", ended, "--", "true")


def test_stop_asks_first(cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]) -> None:
    ready = make_gate(rootfs / "ready")
    for signal_name in ("TERM", "INT"):
        script = f"trap 'echo asked; exit 0' {signal_name}; echo > /ready; sleep 1000000 & wait"
        live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
        ready.wait()
        cli.ok("stop", *(() if signal_name == "TERM" else ("-s", "INT")), live.id)
        assert cli.ok("wait", live.id) == "0\n"
        assert cli.log(live.id) == b"asked\n"


def test_stop_kills_what_is_deaf_after_its_patience(cli: Cli, live: Live) -> None:
    # sleep as PID 1 has no handler for SIGTERM, so the kernel keeps it from it.
    assert cli.ok("stop", "--time", "0.2", live.id) == f"{live.id}\n"
    assert not live.proc.exists()
    assert table(cli.ok("ps"))[0]["STATUS"] == "stopped (137)"
    assert cli.ok("stop", "-t", "0", live.id) == f"{live.id}\n", "stopped already"


def test_rm_refuses_a_running_container_and_force_kills_it_whole(cli: Cli, rootfs: Path) -> None:
    script = "sleep 1000000 & sleep 1000000 & echo; wait"
    process = cli.start(
        "run", "--rootfs", str(rootfs), "-a", "--name", "two", "--", "sh", "-c", script
    )
    read_line(process)
    (container_id,) = cli.ids()
    processes = cli.live(container_id).siblings()
    assert len(processes) == 3
    cgroups = processes[0].cgroups()
    message = cli.refused("rm", "two")
    assert "running" in message
    assert "--force" in message
    assert all(one.proc.exists() for one in processes)
    assert cli.ok("rm", "--force", "two") == f"{container_id}\n"
    for one in processes:
        wait_exit(one.pid)
    assert cli.ids() == set()
    assert not [directory for directory in cgroups if directory.exists()]
    assert process.wait() == 137


def test_rm_judges_each_on_its_own(cli: Cli, ended: str, live: Live) -> None:
    result = cli("rm", "nosuch", live.id, "over")
    assert (result.returncode, result.stdout) == (125, f"{ended}\n".encode())
    first, second = result.stderr.decode().splitlines()
    assert "nosuch" in first
    assert live.id in second
    assert cli.ids() == {live.id}
    assert live.proc.exists()


def test_several_ids_are_each_judged_by_every_command(cli: Cli, ended: str, live: Live) -> None:
    for command, good in (("wait", "3"), ("kill", live.id), ("stop", ended)):
        known = live.id if command == "kill" else ended
        result = cli(command, "nosuch", known)
        assert (result.returncode, result.stdout) == (125, f"{good}\n".encode())
        assert "nosuch" in result.stderr.decode()
    assert json.loads(cli("inspect", "nosuch", ended).stdout)[0]["id"] == ended


# --- options of run -------------------------------------------------------------------------------


def test_rm_option_leaves_nothing_but_the_exit_code(cli: Cli, rootfs: Path) -> None:
    result = cli(
        "run", "--rm", "--name", "gone", "--rootfs", str(rootfs), "--", "sh", "-c", "exit 6"
    )
    assert result.returncode == 6
    assert cli.ids() == set()
    assert cli.ok("ps", "-q") == ""
    the_complaint(cli("logs", result.stdout.decode().strip()), 125)
    cli.ok("run", "--rm", "--name", "gone", "--rootfs", str(rootfs), "--", "true")
    live = cli.detach("--rm", "--rootfs", str(rootfs), "--", *SLEEP)
    waiting = cli.start("wait", live.id)
    cli.ok("kill", live.id)
    assert read_line(waiting) == "137"
    assert cli.ids() == set()


@pytest.mark.parametrize("mode", ["--detach", "--attach", "--init"])
def test_cidfile_holds_the_id(mode: str, cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    result = cli("run", mode, "--cidfile", str(cidfile), "--rootfs", str(rootfs), "--", "true")
    assert (result.returncode, result.stderr) == (0, b"")
    assert cli.ids() == {cidfile.read_text().strip()}


def test_env_file_is_read_and_overridden(cli: Cli, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("# comment\n\nA=1\nB=two words \r\nQ='quoted'\n")
    (tmp_path / "two").write_text("A=2\nC==\nB_LATER=x")
    files = ("--env-file", str(tmp_path / "one"), "--env-file", str(tmp_path / "two"))
    live = cli.detach("--rootfs", str(rootfs), *files, "-e", "B=3", "--", *SLEEP)
    found = live.environment()
    wanted = {"A": "2", "B": "3", "C": "=", "Q": "'quoted'", "B_LATER": "x"}
    assert {key: found.get(key) for key in wanted} == wanted


def test_init_reaps_orphans_and_passes_signals_on(cli: Cli, rootfs: Path) -> None:
    script = "(sleep 1000000 &); echo; exec sleep 1000000"
    arguments = ("run", "--init", "-a", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    process = cli.start(*arguments)
    read_line(process)
    (container_id,) = cli.ids()
    init, main, orphan = cli.live(container_id).siblings()
    assert [one.status()["PPid"] for one in (main, orphan)] == [str(init.pid)] * 2
    os.kill(orphan.pid, signal.SIGKILL)
    wait_reaped(orphan.pid)
    # PID 1 without --init would be deaf to it.
    assert cli.ok("stop", "--time", "1000000", container_id) == f"{container_id}\n"
    assert process.wait() == 128 + signal.SIGTERM


# --- about itself ---------------------------------------------------------------------------------


def test_version_and_help_say_what_there_is(cli: Cli) -> None:
    assert cli.ok("--version") == f"craterun {__version__}\n"
    everything = cli.ok("--help")
    for command in ("run", "exec", "ps", "logs", "inspect", "wait", "stop", "kill", "rm"):
        assert re.search(rf"^\W*{command}\b", everything, re.MULTILINE), command
        assert cli.ok(command, "--help").startswith(f"Usage: craterun {command}")
    assert cli.ok() == everything
    assert "RFC 3339" in cli.ok("logs", "--help"), "the help of one command is the whole of it"
    assert "See: craterun --help" in cli.refused("nosuch")
    assert "See: craterun run --help" in cli.refused("run", "--nosuch")
    for word in ("CRATERUN_ROOT", "--root", "--debug", "125", "126", "127", "128"):
        assert word in everything
    options = cli.ok("run", "--help")
    for option in ("--rootfs", "--name", "--hostname", "--env", "-e", "--env-file", "--workdir",
                   "-w", "--user", "-u", "--interactive", "-i", "--attach", "-a", "--detach", "-d",
                   "--rm", "--cidfile", "--init"):  # fmt: skip
        assert re.search(rf"(^|\s){option}\b", options), option


def test_debug_shows_what_happens(cli: Cli, rootfs: Path) -> None:
    result = cli("--debug", "run", "--rootfs", str(rootfs), "--", "sh", "-c", "exit 4")
    assert result.returncode == 4
    assert result.stdout.decode().strip() in result.stderr.decode()


def test_shell_completion_can_be_installed(cli: Cli, tmp_path: Path) -> None:
    result = cli("--install-completion", "--shell", "bash", env={"HOME": str(tmp_path)})
    assert result.returncode == 0
    assert any("craterun" in p.read_text() for p in tmp_path.rglob("*completions/craterun"))
