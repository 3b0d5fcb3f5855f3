"""How a server begins and ends: by order, by signals, by itself; and with systemd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, detach_obliging, read_line, wait_exit
from tests.serving import children, look_until, serving

cli = helpers.cli
OBLIGING = ("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done")


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM", "SIGINT"])
def test_its_end_stops_its_containers(cli: Cli, state_root: Path, how: str) -> None:
    """As stop does: their last words are logged, their clients get their exit codes."""
    with serving(state_root) as server:
        process = cli.start("run", "--attach", "--", *OBLIGING)
        assert read_line(process) == "ready"
        idle = cli.start("events", "--follow")
        server.busy_worker()
        (container_id,) = cli.ids()
        if how == "shutdown":
            assert cli.ok("shutdown") == ""
            assert server.wait() == (0, b"")
        else:
            assert server.end(signal.Signals[how]) == (0, b"")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (5, b"bye\n", b"")
        assert cli.record(container_id)["exit_code"] == 5
        assert cli.log(container_id) == b"ready\nbye\n"
        _, err = idle.communicate(timeout=60)
        assert idle.returncode == 125
        assert err == b"craterun: the server was shut down before this command had ended\n"
        assert not server.path.exists()
        assert not Path(f"{server.path}.lock").exists()
    assert "no server" in cli.refused("shutdown")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_its_end_leaves_nobody_to_be_reaped_by_pid_1(
    cli: Cli, state_root: Path, *, busy: bool
) -> None:
    """In many a container, PID 1 does not; as a subreaper we would get what it would."""
    before = set(children(os.getpid()))
    with serving(state_root) as server:
        if busy:
            reader = cli.start("events", "--follow")
            before.add(reader.pid)
            server.busy_worker()
        assert len(server.workers()) >= 1 + busy
        assert server.end() == (0, b"")
        if busy:
            reader.communicate(timeout=60)
        assert set(children(os.getpid())) <= before


def test_a_second_signal_kills_what_it_waits_for(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as server:
        script = "trap 'echo deaf' TERM; echo ready; while :; do sleep 0.1; done"
        deaf = cli.detach("--stop-timeout", "1000", "--", "sh", "-c", script)
        log = cli.start("--no-serve", "logs", "--follow", deaf.id)
        assert read_line(log) == "ready"
        server.process.send_signal(signal.SIGTERM)
        assert read_line(log) == "deaf"
        server.process.send_signal(signal.SIGTERM)
        code, _ = server.wait()
        assert code == 0
        wait_exit(deaf.pid)
        assert cli.record(deaf.id)["exit_code"] == 137


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM"])
def test_containers_can_be_left_to_a_successor(cli: Cli, state_root: Path, how: str) -> None:
    options = () if how == "shutdown" else ("--leave-running",)
    with serving(state_root, *options) as server:
        live = cli.detach("--", *OBLIGING)
        if how == "shutdown":
            cli.ok("shutdown", "--leave-running")
            assert server.wait() == (0, b"")
        else:
            assert server.end() == (0, b"")
        assert not server.path.exists()
        assert cli.live(live.id).pid == live.pid
        assert cli.ok("ps", "--format", "json").count('"status": "running"') == 1
        cli.ok("stop", live.id)
        assert cli.record(live.id)["exit_code"] == 5
        assert cli.log(live.id) == b"ready\nbye\n"


@pytest.mark.parametrize("options", [(), ("--leave-running",)], ids=["stop", "leave"])
def test_a_start_under_way_at_its_end_is_finished(
    cli: Cli, state_root: Path, options: tuple[str, ...]
) -> None:
    """Its client was let in, and could not know what has been done."""
    with serving(state_root) as server:
        run = ("run", "--detach", "--stop-timeout", "0", "--", *SLEEP)
        with server.let_in(lambda: cli.start(*run)) as starting:
            ending = cli.start("shutdown", *options)
            look_until(lambda: not server.path.exists())
        out, err = starting.communicate(timeout=60)
        assert (starting.returncode, err) == (0, b"")
        assert server.wait() == (0, b"")
        assert ending.wait(60) == 0
    running = cli.ok("ps", "--format", "json").count('"status": "running"')
    assert running == len(options)
    assert {out.decode().strip()} == cli.ids()


@pytest.mark.parametrize("deaf", [False, True], ids=["heeds", "deaf"])
@pytest.mark.parametrize("timeout", [(), ("--timeout", "1000")], ids=["", "timeout"])
def test_commands_in_containers_of_others_end_with_it(
    cli: Cli, state_root: Path, rootfs: Path, timeout: tuple[str, ...], *, deaf: bool
) -> None:
    """The containers do not."""
    first = cli.detach("--no-serve", "--rootfs", str(rootfs), "--", *SLEEP)
    gate = helpers.Gate(rootfs / "up")
    try:
        with serving(state_root) as server:
            trap = "'' TERM" if deaf else "'echo bye >/up; exit' TERM"
            script = f"trap {trap}; echo up >/up; while :; do sleep 0.05; done"
            options = ("--detach", *timeout, "--stop-timeout", "0.3" if deaf else "1000")
            pid = int(cli.ok("exec", *options, first.id, "--", "sh", "-c", script))
            assert gate.wait() == b"up\n"
            cli.ok("shutdown")
            assert server.wait() == (0, b"")
            wait_exit(pid)
            if not deaf:
                assert gate.wait() == b"bye\n"
    finally:
        gate.close()
    assert cli.live(first.id).pid == first.pid


def test_a_server_whose_socket_was_removed_ends_in_good_order(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as server:
        live = detach_obliging(cli)
        server.path.unlink()
        assert server.end() == (0, b"")
        assert cli.record(live.id)["exit_code"] == 5
        assert not Path(f"{server.path}.lock").exists()


def test_a_server_removes_nothing_of_another_one(cli: Cli, state_root: Path) -> None:
    with serving(state_root, "--leave-running") as first:
        left = detach_obliging(cli)
        lock = Path(f"{first.path}.lock")
        first.path.unlink()
        lock.unlink()
        with serving(state_root) as second:
            assert second.path == first.path
            assert first.end() == (0, b"")
            assert second.path.exists()
            assert lock.exists()
            assert "a server at" in cli.refused("serve")
            live = detach_obliging(cli)
            assert second.end() == (0, b"")
            assert cli.record(live.id)["exit_code"] == 5
        assert not first.path.exists()
        assert not lock.exists()
    assert cli.live(left.id).pid == left.pid


def test_it_ends_when_it_was_idle_for_long_and_not_before(cli: Cli, state_root: Path) -> None:
    with serving(state_root, "--idle-exit", "0.3") as server:
        container_id = cli.ok("run", "--detach", "--", "sh", "-c", "sleep 1; exit 4").strip()
        assert server.wait() == (0, b"")
        # Had it ended before, it would have stopped it.
        assert cli.record(container_id)["exit_code"] == 4
        assert cli.ok("run", "--", "true")


def test_containers_that_wait_for_their_turn_all_get_it(cli: Cli, state_root: Path) -> None:
    with serving(state_root, "--max-parallel-starts", "1"):
        running = [cli.start("run", "--attach", "--", "echo", str(n)) for n in range(6)]
        results = [process.communicate(timeout=60) for process in running]
        assert results == [(f"{n}\n".encode(), b"") for n in range(6)]
    assert "would start nothing" in cli.refused("serve", "--max-parallel-starts", "0")
    assert "--idle-exit" in cli.refused("serve", "--idle-exit", "-1")


def test_a_file_that_is_no_socket_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "not a socket" in cli.refused("serve", "--socket", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_socket_of_any_length_at_another_place(
    cli: Cli, state_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / ("x" * 100) / "serve.sock"
    env = {"CRATERUN_SOCKET": str(path)}
    with serving(state_root, env=env) as server:
        assert server.path == path
        finished = cli("run", "--socket", str(path), "--detach", "--", *SLEEP)
        live = cli.live(finished.stdout.decode().strip())
        parent = int((live.proc / "stat").read_text().rpartition(") ")[2].split()[1])
        assert parent == server.children()["craterun-keeper"]
        cli.ok("rm", "--force", live.id, env=env)


def test_systemd_hands_over_its_socket_and_is_told(cli: Cli, tmp_path: Path) -> None:
    """Played by a few lines of Python: the protocol is two variables, a descriptor, a datagram."""
    path, notices = tmp_path / "passed.sock", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.settimeout(60)
    code = (
        "import os, socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()\n"
        "os.dup2(s.detach(), 9); os.dup2(9, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'craterun', 'serve'])\n"
    )
    env = {
        **os.environ,
        "CRATERUN_ROOT": str(cli.state_root),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as process:
        assert notices.recv(100) == b"READY=1"
        environment = {"CRATERUN_SOCKET": str(path)}
        container_id = cli.ok("run", "--detach", "--", *SLEEP, env=environment).strip()
        live = cli.live(container_id)
        parent = int((live.proc / "stat").read_text().rpartition(") ")[2].split()[1])
        assert parent in children(process.pid)
        assert "LISTEN_FDS" not in live.environment()
        process.send_signal(signal.SIGTERM)
        assert notices.recv(100) == b"STOPPING=1"
        assert process.wait(120) == 0
    notices.close()
    assert path.exists(), "it is systemd's"
    assert cli.record(container_id)["exit_code"] == 137


def test_a_passed_socket_that_does_not_listen_is_refused(cli: Cli, tmp_path: Path) -> None:
    code = (
        "import os, socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.bind({str(tmp_path / 'passed.sock')!r})\n"
        "os.dup2(s.detach(), 9); os.dup2(9, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'craterun', 'serve'])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CRATERUN_ROOT": str(cli.state_root)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert "does not listen" in helpers.the_complaint(finished, 125)


def test_a_server_that_cannot_say_where_it_is_leaves_nothing(cli: Cli) -> None:
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            cli.command("serve"),
            env={**os.environ, "CRATERUN_ROOT": str(cli.state_root)},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert finished.returncode == 125
    assert b"No space left on device" in finished.stderr
    assert b"Traceback" not in finished.stderr
    assert os.listdir(cli.state_root) == []


def test_a_state_directory_that_is_none_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for root in ("file", "file/below"):
        env = {"CRATERUN_ROOT": str(tmp_path / root)}
        for options in ((), ("--socket", str(tmp_path / "serve.sock"))):
            assert "Not a directory" in cli.refused("serve", *options, env=env)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_many_clients_at_once(cli: Cli, state_root: Path) -> None:
    with serving(state_root):
        results: list[helpers.Finished] = []

        def run(number: int) -> None:
            results.append(
                cli("run", "--attach", "--", "sh", "-c", f"echo {number}; exit {number}")
            )

        threads = [threading.Thread(target=run, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcomes = sorted((r.returncode, r.stdout, r.stderr) for r in results)
        assert outcomes == [(n, f"{n}\n".encode(), b"") for n in range(12)]
