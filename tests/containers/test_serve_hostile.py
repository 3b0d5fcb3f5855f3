"""What slow, dead, broken and hostile clients do to a server, and to containers: nothing."""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path

import pytest

from craterun.cli import thin
from craterun.serve import frames
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, Live, read_line
from tests.serving import Server, look_until, serving

cli = helpers.cli
READY_WORKERS = 2
MANY = 20
"""What leaks once is seen when it does so often."""


@pytest.fixture
def live(server: Server, cli: Cli) -> Live:
    """A container that is to notice nothing."""
    return cli.detach("--", *SLEEP)


def dial(server: Server) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(server.path))
    return sock


def is_hung_up(sock: socket.socket) -> bool:
    """Whether the server wants no more of it, or has told the client to do without it."""
    with sock:
        try:
            answer = sock.recv(100)
        except ConnectionError:
            return True
        return answer in (b"", frames.reply(frames.DECLINED))


def require_unharmed(server: Server, cli: Cli, live: Live, descriptors: int) -> None:
    """The container runs, others can be started, and nothing is held."""
    finished = cli("run", "--attach", "--", "echo", "hello")
    assert (finished.returncode, finished.stdout) == (0, b"hello\n")
    assert cli.live(live.id).pid == live.pid
    look_until(lambda: len(server.descriptors()) <= descriptors)
    assert server.process.poll() is None


def settled_descriptors(server: Server, cli: Cli) -> int:
    """How many it may have open when nobody is there.

    Two for each worker that waits for a job, of which there are one or two.
    """
    cli.ok("ps")
    return len(server.descriptors()) + 2 * READY_WORKERS


def hello(state_root: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("CRATERUN_ROOT", str(state_root))
    return thin.hello(arguments, [])


def test_ten_thousand_connections_that_are_dropped(server: Server, cli: Cli, live: Live) -> None:
    before = settled_descriptors(server, cli)
    for _ in range(10_000):
        dial(server).close()
    require_unharmed(server, cli, live, before)


def test_messages_that_are_none(
    server: Server, cli: Cli, live: Live, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settled_descriptors(server, cli)
    good = hello(state_root, ["ps"], monkeypatch)
    chance = random.Random(5)
    bad = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        (frames.MAX_HELLO_BYTES + 1).to_bytes(4, "little"),
        frames.frame(b""),
        frames.frame(b"\x90"),
        frames.frame(b"\x91" * 100_000),
        frames.frame(good[:-1]),
        frames.frame(good + b"\0"),
        frames.frame(good.replace(b"PATH=", b"PA\0H=", 1)),
        frames.frame(good),  # without descriptors
    ]
    for _ in range(200):
        spoilt = bytearray(good)
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        bad.append(frames.frame(bytes(spoilt)))
    for data in bad:
        sock = dial(server)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert is_hung_up(sock), data[:200]
    require_unharmed(server, cli, live, before)


def test_half_a_message_is_waited_for_a_moment_only(server: Server, cli: Cli, live: Live) -> None:
    before = settled_descriptors(server, cli)
    halves = [dial(server) for _ in range(100)]
    for position, sock in enumerate(halves):
        sock.sendall(b"\0\0\1\0\x99"[: position % 6])
    # Meanwhile, everybody else is served.
    assert cli.ok("ps", "--format", "json").count('"status": "running"') == 1
    assert all(is_hung_up(sock) for sock in halves)
    require_unharmed(server, cli, live, before)


def test_greedy_messages_are_refused_and_keep_nobody_out(
    server: Server, cli: Cli, live: Live
) -> None:
    before = settled_descriptors(server, cli)
    greedy = [dial(server) for _ in range(50)]
    for sock in greedy:
        sock.sendall(frames.MAX_HELLO_BYTES.to_bytes(4, "little"))
    other = cli.detach("--", *SLEEP)
    assert other.pid != live.pid
    assert all(is_hung_up(sock) for sock in greedy)
    cli.ok("rm", "--force", other.id)
    require_unharmed(server, cli, live, before)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 16, 100])
def test_a_wrong_number_of_descriptors(
    server: Server,
    cli: Cli,
    live: Live,
    state_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    before = settled_descriptors(server, cli)
    message = frames.frame(hello(state_root, ["ps"], monkeypatch))
    for _ in range(MANY):
        sock = dial(server)
        socket.send_fds(sock, [message], [0] * count)
        assert is_hung_up(sock)
    require_unharmed(server, cli, live, before)


def test_a_client_that_is_gone_before_it_is_declined(
    server: Server, cli: Cli, live: Live, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to say of that, at the server's end neither."""
    before = settled_descriptors(server, cli)
    monkeypatch.setenv("CRATERUN_ROOT", str(state_root / "other"))
    message = frames.frame(thin.hello(["ps"], []))
    for _ in range(MANY):
        os.kill(server.pid, signal.SIGSTOP)
        with dial(server) as sock:
            socket.send_fds(sock, [message], [0] * frames.HELLO_DESCRIPTORS)
        os.kill(server.pid, signal.SIGCONT)
    require_unharmed(server, cli, live, before)


def test_signals_that_are_none_end_the_client_only(
    server: Server, cli: Cli, live: Live, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settled_descriptors(server, cli)
    for words in (["wait", live.id], ["run", "--", "true"]):
        for nonsense in (b"\xff\xff\xff\xff", frames.frame(b"\x09"), frames.frame(b"\xcd\1\1")):
            message = frames.frame(hello(state_root, words, monkeypatch))
            sock = dial(server)
            null = os.open(os.devnull, os.O_RDWR)
            here = os.open(".", os.O_PATH)
            socket.send_fds(sock, [message], [null, null, null, here])
            os.close(null)
            os.close(here)
            sock.sendall(nonsense)
            while sock.recv(100):  # accepted, and then the end
                pass
            sock.close()
    require_unharmed(server, cli, live, before)


def test_a_client_that_floods_with_stops_and_reads_nothing(
    server: Server, cli: Cli, live: Live, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settled_descriptors(server, cli)
    message = frames.frame(hello(state_root, ["run", "-a", "--", *SLEEP], monkeypatch))
    sock = dial(server)
    null = os.open(os.devnull, os.O_RDWR)
    here = os.open(".", os.O_PATH)
    socket.send_fds(sock, [message], [null, null, null, here])
    os.close(null)
    os.close(here)
    look_until(lambda: len(cli.ids()) >= 2)
    stop = frames.frame(bytes([20]))
    for _ in range(200):
        sock.sendall(stop * 100)
    sock.close()
    (other,) = {*cli.ids()} - {live.id}
    cli.ok("rm", "--force", other)
    require_unharmed(server, cli, live, before)


def test_a_shortage_of_descriptors_is_survived(cli: Cli, state_root: Path) -> None:
    """Clients that are not let in do their work themselves."""
    limited = cli.behind("prlimit", "--nofile=48:48")
    with serving(state_root, prefix=("prlimit", "--nofile=48:48")) as server:
        process = limited.start("run", "--attach", "--", "sh", "-c", "echo ready; read x; exit 3")
        assert read_line(process) == "ready"
        crowd = [dial(server) for _ in range(60)]
        finished = limited("run", "--attach", "--", "echo", "hello")
        assert (finished.returncode, finished.stdout) == (0, b"hello\n")
        for sock in crowd:
            sock.close()
        finished = limited("run", "--attach", "--", "echo", "hello")
        assert (finished.returncode, finished.stdout) == (0, b"hello\n")
        assert process.poll() is None or process.returncode == 3
        limited.ok("rm", "--force", *cli.ids())
