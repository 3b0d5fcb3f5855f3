"""top: the processes in a container, against /proc."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.containers import helpers
from tests.containers.helpers import PATIENCE_SECONDS, SLEEP, Cli, Gate, Live, wait_exit
from tests.containers.streams_helpers import stat_fields

cli = helpers.cli
make_gate = helpers.make_gate
v2 = pytest.mark.cgroup_v2


@pytest.fixture
def live(cli: Cli, rootfs: Path) -> Live:
    """A container named ``one`` that does nothing."""
    return cli.detach("--rootfs", str(rootfs), "--name", "one", "--", *SLEEP)


def top(cli: Cli, container: str) -> list[dict[str, Any]]:
    found = json.loads(cli.ok("top", container, "--format", "json"))
    assert isinstance(found, list)
    return found


@v2
def test_every_figure_is_that_of_proc(cli: Cli, live: Live) -> None:
    (info,) = top(cli, "one")
    assert set(info) == {
        "pid", "host_pid", "uid", "user", "state", "cpu_seconds", "rss_bytes", "started", "name",
        "command",
    }  # fmt: skip
    assert (info["pid"], info["host_pid"]) == (1, live.pid)
    assert (info["uid"], info["user"], info["name"]) == (0, "root", "sleep")
    assert info["command"] == list(SLEEP)
    assert info["state"] == "S"
    assert info["rss_bytes"] == int(live.status()["VmRSS"].split()[0]) * 1024
    fields = stat_fields(live.pid)
    ticks = os.sysconf("SC_CLK_TCK")
    assert info["cpu_seconds"] == (int(fields[11]) + int(fields[12])) / ticks
    table = cli.ok("top", "one").splitlines()
    assert table[0].split() == [
        "PID", "HOST", "PID", "USER", "STATE", "CPU", "TIME", "RSS", "STARTED", "COMMAND"
    ]  # fmt: skip
    assert table[1].split()[:4] == ["1", str(live.pid), "root", "S"]
    assert table[1].endswith("sleep 1000000")


def test_users_have_the_names_of_the_container(cli: Cli, rootfs: Path) -> None:
    first = cli.detach("--rootfs", str(rootfs), "--user", "alice", "--", *SLEEP)
    (info,) = top(cli, first.id)
    assert (info["uid"], info["user"]) == (1000, "alice")
    passwd = rootfs / "etc" / "passwd"
    passwd.unlink()
    passwd.symlink_to("/etc/../../../etc/shadow")  # the container may put anything there
    assert top(cli, first.id)[0]["user"] == "1000"


def test_processes_of_exec_and_of_the_shell_are_listed_in_their_order(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    gate, block = make_gate(rootfs / "gate"), make_gate(rootfs / "block")
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", "sleep 7777 & wait")
    running = cli.start(
        "exec", "--user", "alice", live.id, "--", "sh", "-c", "echo up >/gate; read x </block"
    )
    gate.wait()
    found = top(cli, live.id)
    assert {info["host_pid"] for info in found} == {s.pid for s in live.siblings()}
    assert [info["pid"] for info in found] == [s.pid_inside() for s in live.siblings()]
    assert [info["user"] for info in found] == ["root", "root", "alice"]
    assert found[1]["command"] == ["sleep", "7777"]
    block.open()
    assert running.wait(PATIENCE_SECONDS) == 0


def test_processes_of_nested_namespaces_are_listed_and_those_of_others_not(
    cli: Cli, live: Live, make_rootfs: Callable[[str], Path], make_gate: Callable[[Path], Gate]
) -> None:
    """The container may not make namespaces: they are entered from outside, as a debugger does."""
    other = cli.detach("--rootfs", str(make_rootfs("other")), "--", *SLEEP)
    running = subprocess.Popen(
        ["nsenter", "-t", str(live.pid), "-p", "unshare", "--fork", "--pid",
         "sh", "-c", "echo up; read x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with running:
        helpers.read_line(running)
        found = top(cli, "one")
        nested = next(info for info in found if info["command"][:2] == ["sh", "-c"])
        inside = Live(nested["host_pid"]).status()["NSpid"].split()
        assert (int(inside[-2]), int(inside[-1])) == (nested["pid"], 1)
        assert other.pid not in {info["host_pid"] for info in found}
        assert live.pid in {info["host_pid"] for info in found}
        assert len(top(cli, other.id)) == 1


def test_a_zombie_is_shown_as_what_it_is(
    cli: Cli, rootfs: Path, make_gate: Callable[[Path], Gate]
) -> None:
    up, block = make_gate(rootfs / "up"), make_gate(rootfs / "block")
    # The shell becomes a program that reaps nobody, after its child has ended.
    script = "true & echo up >/up; read x </block; exec sleep 1000000"
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", script)
    up.wait()
    child = live.siblings()[-1]
    assert child.pid != live.pid
    wait_exit(child.pid)
    found = {info["host_pid"]: info for info in top(cli, live.id)}
    assert found[child.pid]["state"] == "Z"
    assert found[child.pid]["command"] == []
    assert "[true]" in cli.ok("top", live.id) or "[sh]" in cli.ok("top", live.id)
    block.open()


def test_names_and_arguments_cannot_steer_the_terminal(cli: Cli, rootfs: Path) -> None:
    script = 'while :; do read x </dev/null; break; done; exec sleep "1000000" # \x1b]0;owned\x07\n'
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", f"{script}\nread x </nowhere")
    gate = [b"\x1b", b"\x07"]
    output = cli.ok("top", live.id).encode()
    assert not any(byte in output for byte in gate)


def test_processes_that_end_while_they_are_read_do_no_harm(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", "sh", "-c", "while :; do true; done")
    for _ in range(20):
        found = top(cli, live.id)
        assert found[0]["pid"] == 1
        assert all(info["pid"] > 0 for info in found)


@v2
def test_a_paused_container_can_be_looked_into(cli: Cli, live: Live) -> None:
    cli.ok("pause", "one")
    assert [info["host_pid"] for info in top(cli, "one")] == [live.pid]


def test_what_does_not_run_is_refused(cli: Cli, live: Live) -> None:
    cli.ok("kill", "one")
    cli.ok("wait", "one")
    assert cli.refused("top", "one") == f"container {live.id} is not running"
    assert "no container 'nobody'" in cli.refused("top", "nobody")
