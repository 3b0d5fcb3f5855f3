"""What is asked of ``exec``: a further process in a running container."""

from __future__ import annotations

import msgspec

from craterun.core.errors import UsageError
from craterun.core.spec import check_process, check_times, check_window


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One further process, as asked for.

    :ivar command: the program and its arguments, as in `Spec`
    :ivar env: added to the container's own
    :ivar workdir: default: the container's own
    :ivar user: as in `Spec`; default: root
    :ivar stdin: give it an input pipe; without it stdin is /dev/null
    :ivar window: (rows, columns) of a terminal to get instead of pipes
    :ivar detached: it has no streams, and does not end with its supervisor's process
    :ivar timeout: seconds after which it is ended; None: never
    :ivar stop_signal: what asks it to end then
    :ivar stop_seconds: how long it has to end then, before SIGKILL
    """

    command: tuple[str, ...]
    env: dict[str, str] = {}
    workdir: str | None = None
    user: str | None = None
    stdin: bool = False
    window: tuple[int, int] | None = None
    detached: bool = False
    timeout: float | None = None
    stop_signal: int = 15
    stop_seconds: float = 10.0

    def check(self) -> None:
        """Raise `UsageError` for what no container could run."""
        if self.detached and self.stdin:
            raise UsageError("--detach and --interactive exclude each other")
        if self.detached and self.window is not None:
            raise UsageError("--detach and --tty exclude each other")
        if self.window is not None:
            check_window(self.window)
        check_times(self.timeout, self.stop_seconds)
        workdir = self.workdir if self.workdir is not None else "/"
        check_process(self.command, self.env, workdir, example="exec web")
