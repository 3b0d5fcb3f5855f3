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
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CLIENT), received, replies.hex()],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ,
        timeout=60,
    )
    assert (finished.returncode, finished.stdout) == (code, output), finished.stderr
