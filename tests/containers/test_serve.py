"""A server: it is used when it is there, and everything is the same with it and without."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import (
    SLEEP,
    Cli,
    lines_of,
    read_line,
    read_some,
    wait_exit,
    wait_reaped,
)
from tests.leaks import open_descriptors
from tests.serving import Server, comm, look_until, serving

cli = helpers.cli


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def state(pid: int) -> str:
    """As proc(5) calls it, one letter; that of the dead if it has been reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


# --- it is used ---------------------------------------------------------------------------------


def test_its_keeper_is_the_parent_of_all_containers(server: Server, cli: Cli) -> None:
    keeper = server.children()["craterun-keeper"]
    first = cli.detach("--", *SLEEP)
    process = cli.start("run", "--", *SLEEP)
    second = cli.live(read_line(process))
    assert parent(first.pid) == parent(second.pid) == keeper
    assert cli.record(second.id)["pid"] == second.pid
    cli.ok("stop", "--time", "0", first.id, second.id)
    assert process.wait(60) == 137


def test_no_serve_does_without(server: Server, cli: Cli) -> None:
    live = cli.detach("--no-serve", "--", *SLEEP)
    assert parent(live.pid) != server.children()["craterun-keeper"]
    assert cli.ok("--no-serve", "ps", "--format", "json").count(f'"id": "{live.id}"') == 1


@pytest.mark.cgroup_v2  # of a kernel that has less, too: no time namespaces
def test_output_exit_code_and_complaints_arrive(server: Server, cli: Cli) -> None:
    script = "echo out; echo err >&2; exit 7"
    finished = cli("run", "--attach", "--", "sh", "-c", script)
    assert (finished.returncode, finished.stdout, finished.stderr) == (7, b"out\n", b"err\n")
    (container_id,) = cli.ids()
    assert (cli.log(container_id), cli.log(container_id, "stderr")) == (b"out\n", b"err\n")
    assert "not found" in cli.refused("run", "--", "no-such-program", code=127)
    assert "exclude" in cli.refused("run", "--attach", "--detach", "--", "true")
    assert "--nmae" in cli.refused("run", "--nmae", "x", "--", "true")
    assert cli.ids() == {container_id}


def test_what_dies_of_a_signal_does_so_in_the_client(server: Server, cli: Cli) -> None:
    live = cli.detach("--", *SLEEP)
    waiting = cli.start("wait", live.id)
    server.busy_worker()
    waiting.send_signal(signal.SIGUSR1)
    assert waiting.wait(60) == -signal.SIGUSR1


def test_signals_that_the_server_ignores_are_not_ignored_by_commands(
    cli: Cli, state_root: Path
) -> None:
    """A shell without job control lets what it starts with ``&`` ignore two."""
    ignoring = ("sh", "-c", "trap '' INT QUIT ALRM USR1; exec \"$@\"", "sh")
    with serving(state_root, prefix=ignoring) as running:
        live = cli.detach("--", *SLEEP)
        assert int(live.status()["SigIgn"], 16) == 0
        waiting = cli.start("wait", live.id)
        worker = helpers.Live(running.busy_worker())
        assert worker.status()["SigIgn"] == helpers.Live(os.getpid()).status()["SigIgn"]
        waiting.send_signal(signal.SIGQUIT)
        assert waiting.wait(60) == -signal.SIGQUIT
        deaf = cli.behind(*ignoring).start("wait", live.id)
        worker = helpers.Live(running.busy_worker())
        # It has its streams before that.
        look_until(lambda: int(worker.status()["SigIgn"], 16) & 1 << (signal.SIGQUIT - 1))
        deaf.kill()
        deaf.wait(60)


def test_stdin_goes_in(server: Server, cli: Cli) -> None:
    data = os.urandom(300_000)
    finished = cli("run", "-i", "--attach", "--", "cat", stdin=data)
    assert (finished.returncode, finished.stdout) == (0, data)


def test_environment_and_directory_are_the_clients(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "some.env").write_text("A=1\n")
    arguments: tuple[str, ...] = ("run", "--env-file", "some.env", "--cidfile", "id", "-a", "--")
    finished = cli(*arguments, "sh", "-c", "echo $A", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, b"1\n")
    assert {(tmp_path / "id").read_text()} == cli.ids()
    assert "id: File exists" in cli.refused("run", "--cidfile", "id", "--", "true", cwd=tmp_path)
    arguments = ("run", "--cidfile", "other", "--", "no-such-program")
    assert "not found" in cli.refused(*arguments, code=127, cwd=tmp_path)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("option", [(), ("--rm",), ("--log-driver", "none")])
def test_output_of_a_container_that_ends_before_its_cidfile_is_written_arrives(
    server: Server, cli: Cli, tmp_path: Path, option: tuple[str, ...]
) -> None:
    """The server writes that file in a thread, which takes longer than many a container lives."""
    for number in range(8):
        cidfile = tmp_path / f"id-{number}"
        command = ("sh", "-c", f"echo {number} >&2; exit 3")
        finished = cli("run", "--attach", *option, "--cidfile", str(cidfile), "--", *command)
        found = (finished.returncode, finished.stdout, finished.stderr)
        assert found == (3, b"", f"{number}\n".encode())
        assert helpers.ID.match(cidfile.read_text())


def test_arguments_that_are_no_utf8_arrive(server: Server, cli: Cli) -> None:
    finished = cli("run", "--attach", "--", "printf", "%s", b"\xff\xfe")
    assert (finished.returncode, finished.stdout) == (0, b"\xff\xfe")


def test_a_line_that_comes_again_is_read_as_the_first_time(server: Server, cli: Cli) -> None:
    """By then the workers know it by heart."""
    for number in range(6):
        arguments = ("run", "--attach", "--env", "A=x y", "--stop-timeout", "3", "--")
        finished = cli(*arguments, "sh", "-c", f'echo "$A" "$@" {number}', "sh", "--", "-e")
        assert (finished.returncode, finished.stdout) == (0, f"x y -- -e {number}\n".encode())
        assert "no command given" in cli.refused(*arguments)


def test_umask_and_limits_that_a_container_would_inherit_are_respected(
    server: Server, cli: Cli
) -> None:
    """The server cannot give them to its containers, so it leaves them to the client."""
    keeper = server.children()["craterun-keeper"]
    for prefix in (("prlimit", "--core=4096:4096"), ("sh", "-c", 'umask 077; exec "$@"', "sh")):
        live = cli.behind(*prefix).detach("--", *SLEEP)
        assert parent(live.pid) != keeper
        ours = "4096" in (live.proc / "limits").read_text()
        assert ours == (prefix[0] == "prlimit")
    assert stat.S_IMODE(os.stat(cli.state_root / live.id / "metadata.json").st_mode) & 0o77 == 0


def test_a_state_directory_of_ones_own_is_respected(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    env = {"CRATERUN_SOCKET": str(server.path), "CRATERUN_ROOT": str(tmp_path / "mine")}
    finished = cli("run", "--", "true", env=env)
    assert finished.returncode == 0
    assert (tmp_path / "mine" / finished.stdout.decode().strip()).is_dir()
    assert cli.ids() == set()


# --- signals, and the deaths of clients ---------------------------------------------------------


def test_signals_of_the_client_are_forwarded(server: Server, cli: Cli) -> None:
    script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 1; done"
    process = cli.start("run", "--attach", "--", "sh", "-c", script)
    assert read_line(process) == "ready"
    process.send_signal(signal.SIGUSR1)
    assert read_line(process) == "got"
    assert process.wait(60) == 9


def test_a_client_that_is_killed_leaves_its_container_running(server: Server, cli: Cli) -> None:
    process = cli.start("run", "--attach", "--", "sh", "-c", "echo ready; exec sleep 1000000")
    assert read_line(process) == "ready"
    (container_id,) = cli.ids()
    before = cli.live(container_id)
    process.kill()
    process.wait(60)
    assert cli.ok("ps", "--format", "json").count('"status": "running"') == 1
    assert cli.live(container_id).pid == before.pid
    assert parent(before.pid) == server.children()["craterun-keeper"]
    cli.ok("stop", "--time", "0", container_id)
    assert cli.record(container_id)["exit_code"] == 137


def test_the_input_of_a_client_that_is_killed_ends(server: Server, cli: Cli) -> None:
    reader, writer = os.pipe()
    process = cli.start("run", "-ia", "--", "sh", "-c", "echo ready; cat; exit 4", stdin=reader)
    os.close(reader)
    assert read_line(process) == "ready"
    (container_id,) = cli.ids()
    process.kill()
    process.wait(60)
    assert cli.ok("wait", container_id) == "4\n"
    os.close(writer)


@pytest.mark.parametrize("command", ["wait", "logs --follow"])
def test_a_command_ends_with_its_client(server: Server, cli: Cli, command: str) -> None:
    live = cli.detach("--", *SLEEP)
    process = cli.start(*command.split(), live.id)
    worker = server.busy_worker()
    process.kill()
    process.wait(60)
    wait_exit(worker)


def test_an_exec_ends_with_its_client(server: Server, cli: Cli) -> None:
    live = cli.detach("--", *SLEEP)
    process = cli.start("exec", live.id, "--", "sh", "-c", "sleep 1000000 & echo up; wait")
    assert read_line(process) == "up"
    assert_ends_with(process, live)


@pytest.mark.parametrize("milliseconds", range(0, 60, 4))
def test_an_exec_ends_with_its_client_killed_at_any_time(
    server: Server, cli: Cli, milliseconds: int
) -> None:
    live = cli.detach("--", *SLEEP)
    process = cli.start("exec", live.id, "--", *SLEEP)
    time.sleep(milliseconds / 1000)
    assert_ends_with(process, live)


def assert_ends_with(process: subprocess.Popen[bytes], live: helpers.Live) -> None:
    """What an exec has started ends with its client."""
    process.kill()
    process.wait(60)
    assert process.stdout is not None
    assert process.stdout.read() == b""  # the server, too, has let go of it: it has done its part
    for sibling in live.siblings():
        if sibling.pid != live.pid:
            wait_exit(sibling.pid)
    # What is dead may still have to be reaped.
    left = [sibling.pid for sibling in live.siblings() if state(sibling.pid) not in "ZX"]
    assert left == [live.pid]


def test_ctrl_z_stops_client_and_command(server: Server, cli: Cli) -> None:
    live = cli.detach("--", "sh", "-c", "read x; echo more; exec sleep 1000000")
    process = cli.start("logs", "--follow", live.id, process_group=0)
    worker = server.busy_worker()
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    # It has been sent the signal, but may have to be scheduled for it.
    look_until(lambda: state(worker) == "T")
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    wait_exit(worker)


def test_a_reader_that_stops_holds_up_nobody(server: Server, cli: Cli) -> None:
    endless = cli.start("run", "--attach", "--log-max-size", "1m", "--", "yes")
    assert read_some(endless.stdout.fileno()).startswith(b"y\n")  # type: ignore[union-attr]
    for _ in range(3):
        finished = cli("run", "--attach", "--", "echo", "hello")
        assert (finished.returncode, finished.stdout) == (0, b"hello\n")
    endless.kill()
    endless.wait(60)


# --- its own life -------------------------------------------------------------------------------


def test_the_socket_is_for_its_user_only(server: Server) -> None:
    mode = os.stat(server.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_another_user_is_not_let_in(server: Server, cli: Cli, tmp_path: Path) -> None:
    """Even where the file would let them."""
    folder = os.open(server.path.parent, os.O_PATH)
    script = (
        "import os, socket, sys\n"
        "os.setgid(1); os.setuid(1)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        f"s.connect('/proc/self/fd/{folder}/{server.path.name}')\n"
        "try:\n"
        "    s.sendall(b'\\4\\0\\0\\0')\n"
        "    assert s.recv(100) == b''\n"
        "except ConnectionError: pass\n"
    )
    server.path.chmod(0o666)
    command = [sys.executable, "-I", "-c", script]
    finished = subprocess.run(command, pass_fds=[folder], capture_output=True, check=False)
    os.close(folder)
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_a_second_server_is_refused(server: Server, cli: Cli) -> None:
    assert "a server at" in cli.refused("serve")
    assert cli.ok("run", "--", "true")


def test_what_a_dead_server_has_left_is_replaced(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as first:
        first.end(signal.SIGKILL)
        assert first.path.exists()
        assert cli.ok("run", "--", "true")
        with serving(state_root) as second:
            live = cli.detach("--", *SLEEP)
            assert parent(live.pid) == second.children()["craterun-keeper"]
    assert not first.path.exists()
    assert not Path(f"{first.path}.lock").exists()


def test_a_killed_server_is_succeeded_and_its_clients_are_told(cli: Cli, server: Server) -> None:
    process = cli.start("run", "--attach", "--", "sh", "-c", "echo ready; exec sleep 1000000")
    assert read_line(process) == "ready"
    (container_id,) = cli.ids()
    live = cli.live(container_id)
    server.end(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 125
    assert b"the server that ran this command has gone" in stderr
    assert cli.live(container_id).pid == live.pid
    cli.ok("stop", "--time", "0", container_id)
    assert cli.record(container_id)["exit_code"] == 137


def test_without_its_spawner_the_server_leaves_commands_to_clients(
    cli: Cli, state_root: Path
) -> None:
    with serving(state_root) as running:
        live = cli.detach("--", *SLEEP)
        keeper, spawner = (running.children()[f"craterun-{name}"] for name in ("keeper", "spawn"))
        os.kill(spawner, signal.SIGKILL)
        wait_reaped(spawner)
        assert cli.ok("ps", "--format", "json").count('"status": "running"') == 1
        assert cli.ok("run", "--", "true")
        assert parent(live.pid) == keeper
        code, stderr = running.end()
        assert code == 0
        assert stderr.count(b"\n") == 1
        assert b"the process that starts commands has died (SIGKILL" in stderr
        assert cli.record(live.id)["exit_code"] == 137


def test_without_its_keeper_the_server_ends_at_once(cli: Cli, state_root: Path) -> None:
    with serving(state_root) as running:
        process = cli.start("run", "--attach", "--", "sh", "-c", "echo ready; exec sleep 1000000")
        assert read_line(process) == "ready"
        os.kill(running.children()["craterun-keeper"], signal.SIGKILL)
        code, stderr = running.wait()
        assert code == 125  # a unit with Restart=on-failure starts another one
        assert stderr.startswith(b"craterun: the keeper process has died, and its containers with")
        assert stderr.count(b"\n") == 1
        assert not running.path.exists()
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 125
        assert b"keeper" in stderr
    assert cli.ok("run", "--", "true")


def test_lines_of_a_followed_log_come_as_they_are_written(server: Server, cli: Cli) -> None:
    script = "for i in 1 2 3; do echo $i; done"
    live = cli.ok("run", "--detach", "--", "sh", "-c", script).strip()
    assert list(lines_of(cli.start("logs", "--follow", live))) == ["1", "2", "3"]


def test_its_processes_hold_nothing_that_is_the_servers(server: Server, cli: Cli) -> None:
    """With its socket, a client in the backlog would wait for the last one of them to end."""
    cli.ok("ps")
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    listening = {f"socket:[{words[6]}]" for words in sockets if words[3] == "00010000"}
    own = {*(listening & {*server.descriptors().values()}), f"{server.path}.lock"}
    assert own < {*server.descriptors().values()}
    assert len(own) == 2
    for pid in (server.children()["craterun-spawn"], *server.workers()):
        assert not own & {*open_descriptors(pid).values()}


def test_the_names_of_its_processes_tell_what_they_are(server: Server, cli: Cli) -> None:
    cli.ok("ps")
    assert comm(server.pid) == "craterun-serve"
    assert set(server.children()) == {"craterun-keeper", "craterun-spawn"}
    # One that has just been forked has its parent's for a moment.
    names = {comm(pid) for pid in server.workers()}
    assert "craterun-worker" in names
    assert names <= {"craterun-worker", "craterun-spawn"}
