"""The client of a server: whatever happens, a command is run by one of them, and once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from craterun.serve import frames

_CLIENT = """
    import socket
    import sys
    import threading

    from craterun.cli import thin

    ours, theirs = socket.socketpair()


    def serve(whole):
        size = int.from_bytes(theirs.recv(4, socket.MSG_WAITALL), "little")
        theirs.recv(size if whole else size // 2, socket.MSG_WAITALL)
        theirs.sendall(bytes.fromhex(sys.argv[2]))
        theirs.close()


    class Slow:
        # The server has done all that it does before a call that sends comes back.
        def __init__(self):
            self.thread = threading.Thread(target=serve, args=[sys.argv[1] == "whole"])
            self.thread.start()

        def sendmsg(self, buffers, ancillary, flags):
            sent = ours.sendmsg(buffers, ancillary, flags)
            self.thread.join()
            return sent

        def __getattr__(self, name):
            return getattr(ours, name)


    thin._Client(Slow()).run(["ps"])
    print("run here")
"""


_SILENT = """
    import os
    import signal
    import socket

    from craterun.cli import thin
    from craterun.serve import frames

    ours, theirs = socket.socketpair()


    class Told:
        # Something happens as soon as the server has been told.
        def sendmsg(self, buffers, ancillary, flags):
            sent = ours.sendmsg(buffers, ancillary, flags)
            {then}
            return sent

        def __getattr__(self, name):
            return getattr(ours, name)


    try:
        thin._Client(Told()).run(["ps"])
        print("run here")
    except KeyboardInterrupt:
        print("interrupted")
    try:
        theirs.send(frames.reply(frames.ACCEPTED))
        print("accepted")
    except BrokenPipeError:
        print("told that nobody waits any more")
"""


def run_client(code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("then", "output"),
    [
        ("pass", b"run here\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", b"interrupted\n"),
        (
            "theirs.send(frames.reply(frames.DECLINED)); os.kill(os.getpid(), signal.SIGINT)",
            b"interrupted\n",
        ),
        ("os.kill(os.getpid(), signal.SIGWINCH)", b"run here\n"),
    ],
    ids=["nothing", "interrupt", "declined", "window"],
)
def test_what_a_server_has_not_accepted_in_time_it_cannot_accept_any_more(
    then: str, output: bytes
) -> None:
    """And so it may be run here, or not at all."""
    code = _SILENT.replace("{then}", then).replace(
        "ours, theirs =", "thin._ANSWER_SECONDS = 1\n    ours, theirs ="
    )
    finished = run_client(code)
    expected = output + b"told that nobody waits any more\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, expected, b"")


@pytest.mark.parametrize(
    ("received", "replies", "code", "output"),
    [
        ("whole", frames.reply(frames.ACCEPTED) + frames.reply(frames.EXITED, 7), 7, b""),
        ("whole", frames.reply(frames.ACCEPTED), 125, b""),
        ("whole", frames.reply(frames.DECLINED), 0, b"run here\n"),
        ("whole", b"", 0, b"run here\n"),
        ("half", b"", 0, b"run here\n"),
    ],
    ids=["done", "accepted-and-died", "declined", "died", "died-early"],
)
def test_a_server_that_closes_at_once(
    received: str, replies: bytes, code: int, output: bytes
) -> None:
    finished = run_client(_CLIENT, received, replies.hex())
    assert (finished.returncode, finished.stdout) == (code, output), finished.stderr
