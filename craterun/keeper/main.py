"""From a fresh interpreter to the keeper."""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

from craterun.core import flags as f
from craterun.keeper.child import LOWEST_FD
from craterun.keeper.keeper import Keeper
from craterun.keeper.native import make_native
from craterun.linux import calls


def main(fd: int, takeover: list[str]) -> None:
    """Entry of the keeper's process.

    :param fd: inherited socket to the supervisor
    :param takeover: command that starts another supervisor; the number of its socket is appended
    """
    for number in range(1, 65):
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # SIGKILL, SIGSTOP and the two that glibc keeps to itself
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    # Containers must not look into the process that sets them up (CVE-2016-9962).
    calls.prctl(f.PR_SET_DUMPABLE, 0)
    calls.set_process_name(b"craterun-keeper")
    # Its arguments name paths of the host, and the PID 1 of --init, a fork, has them, too.
    calls.set_command_line(b"craterun-keeper")
    sock = _socket.socket(fileno=fcntl(fd, F_DUPFD_CLOEXEC, LOWEST_FD))
    os.close(fd)  # which may be beyond those below
    for number in range(3, LOWEST_FD):
        os.dup2(0, number, inheritable=False)  # /dev/null, so that nothing else gets the number
    gc.disable()
    gc.freeze()
    try:
        keeper = Keeper(sock, takeover)
        keeper.launcher.native = make_native(keeper.launcher.open_files)
        keeper.run()
    finally:
        os._exit(1 if sys.exc_info()[0] else 0)
