"""The minimal init of ``--init``.

It is the keeper's child that stays behind when it has forked the command, so there is no program to
be found or copied into the container. Being PID 1, it inherits every orphan, and the kernel ends
the whole container with it.
"""

from __future__ import annotations

import _signal
import os

from craterun.linux import calls

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import NoReturn

SIGNALS = frozenset(_signal.valid_signals())
_FORWARDED = SIGNALS - {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD}


def be_init(main: int) -> NoReturn:
    """Be PID 1: reap everything, forward signals to ``main``, end as ``main`` ends.

    All signals are blocked already, and so queue up for sigwaitinfo(2).
    """
    calls.set_process_name(b"craterun-init")
    calls.set_command_line(b"craterun-init")
    null = os.open(b"/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    while True:
        number = _signal.sigwaitinfo(SIGNALS).si_signo
        if number in _FORWARDED:
            try:
                os.kill(main, number)
            except ProcessLookupError:
                pass
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == main:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
