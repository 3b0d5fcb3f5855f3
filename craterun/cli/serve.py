"""serve: one supervisor for everybody, and warm processes for commands; shutdown: its end."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from craterun.cli import thin, typed
from craterun.core.errors import CraterunError, UsageError
from craterun.core.spec import MAX_SECONDS
from craterun.linux.calls import set_process_name
from craterun.linux.userns import become_root
from craterun.serve import frames
from craterun.serve.hello import Circumstances
from craterun.serve.jobs import Crew, spawn
from craterun.serve.listener import Listener, listen, notify, take_passed, wait_for_end
from craterun.state.store import Store, default_root

if TYPE_CHECKING:
    from _socket import socket


def serve(
    *,
    max_parallel_starts: int | None = None,
    idle_exit: typed.Annotated[float | None, typed.Parameter(negative=())] = None,
    leave_running: bool = False,
) -> int:
    """Stay, and make all other commands quick: they use a server whenever there is one.

    It listens at .serve.sock in the state directory, or where --socket or CRATERUN_SOCKET says, for
    the same user only. Every command works the same with it and without. SIGTERM, SIGINT and
    craterun shutdown end it in good order; a second signal kills what it waits for.

    Parameters
    ----------
    max_parallel_starts
        How many containers may be starting at the same time; the others wait. Default: four for
        each processor, at least eight.
    idle_exit
        Seconds after which it ends, if nothing runs and nobody is connected for so long.
    leave_running
        At its end, do not stop its containers: another supervisor looks after them.
    """
    if max_parallel_starts is not None and max_parallel_starts < 1:
        raise UsageError(f"--max-parallel-starts {max_parallel_starts} would start nothing")
    if idle_exit is not None and not 0 < idle_exit < MAX_SECONDS:
        raise UsageError(f"--idle-exit {idle_exit:g} is not a number of seconds to wait for")
    root = default_root()
    program, essence = thin.program(), _circumstances().essence()
    path = os.path.abspath(thin.socket_path())
    become_root()  # after which the default would be that of root
    signal.signal(signal.SIGTERM, _give_up)  # until there is somebody who ends in good order
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    listener = take_passed() or listen(path)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # from here on, what there is goes away
        Store(root).make_root()  # or every start would fail
        from craterun.cli.warm import get_ready

        get_ready()  # before the fork, so that the memory is shared
        pid, sock = spawn(Crew(_rehearse, _run))
        from craterun.cli.serving import Serving

        serving = Serving(
            root=root,
            program=program,
            essence=essence,
            idle_seconds=idle_exit,
            max_starts=max_parallel_starts,
            leave=leave_running,
        )
        serving.run(listener, pid, sock, lambda: _ready(listener))
    finally:
        listener.close()
        listener.release()
    return 0


def _give_up(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _ready(listener: Listener) -> None:
    set_process_name(b"craterun-serve")
    print(f"craterun serves at {listener.path}", flush=True)
    notify("READY=1")


def _circumstances() -> Circumstances:
    return msgspec.convert(thin.circumstances(), Circumstances)


def _rehearse() -> None:
    from craterun.cli.warm import rehearse

    rehearse()


def _run(arguments: list[str]) -> int:
    from craterun.cli.app import run_command_line

    return run_command_line(arguments)


def shutdown(*, leave_running: bool = False) -> int:
    """End the server that craterun serve has started; returns when it has ended.

    Its containers are stopped as by craterun stop. A server that is ending already is waited for.

    Parameters
    ----------
    leave_running
        Do not stop them: another supervisor looks after them.
    """
    path = os.path.abspath(thin.socket_path())
    words = [frames.SHUTDOWN, frames.LEAVE_RUNNING] if leave_running else [frames.SHUTDOWN]
    sock = thin.connect(path)
    if sock is not None:
        with closing(sock):
            answers = _answers(sock, frames.frame(thin.hello(words, [])))
        if answers:
            _require_end(path, ended=frames.EXITED in answers)
            return 0
        if os.path.exists(path):
            raise CraterunError(f"the server at {path} does not let us in: {_why_not(path)}")
    if leave_running:
        raise CraterunError(f"there is no server at {path}, or it is ending already")
    _require_end(path, ended=wait_for_end(path))
    return 0


def _answers(sock: socket, message: bytes) -> list[int]:
    """What kinds of replies the server has sent until it was no more; none if it has not let us in.

    :raises CraterunError: it does not even read what we say
    """
    received = b""
    try:
        sock.sendall(message)
        thin.limit_wait(sock, limited=True)  # for the first answer, which takes no time
        while data := sock.recv(4096):
            thin.limit_wait(sock, limited=False)
            received += data
    except BlockingIOError:
        raise CraterunError("the server does not answer") from None
    except ConnectionError:
        pass  # it has closed without a look at what we say, as it does to strangers
    size = len(frames.reply(frames.ACCEPTED))
    replies = (received[start + 4 : start + size] for start in range(0, len(received), size))
    return [frames.kind_and_value(reply)[0] for reply in replies]


def _why_not(path: str) -> str:
    owner = os.stat(path).st_uid
    if owner != os.geteuid():
        return f"it is for user {owner}"
    return "it has as many clients as it may have, or is of another version"


def _require_end(path: str, *, ended: bool) -> None:
    if not ended:
        raise CraterunError(
            f"the server at {path} was killed before it had ended; containers that it ran live on: "
            "see craterun ps"
        )
