"""The command line's entry: answers what needs no import; leaves the rest to `cli.app`."""

from __future__ import annotations

import _signal
import gc
import os
import sys

TYPE_CHECKING = False  # typing is an import that most commands do without
if TYPE_CHECKING:
    from typing import NoReturn

_CANNOT_WRITE = 125
_INTERRUPTED = 130


def main() -> None:
    """The program ``craterun`` (bin/craterun); also ``python -m craterun``.

    Exits with the command's code.
    """
    # Who ignores it has the kernel reap its children (wait(2)); a parent of ours may have.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    gc.disable()  # until all is imported that a command needs: of that, little is garbage
    closed = _open_standard_streams()
    if closed:
        from craterun.cli import closed as noted

        noted.streams = closed
    if sys.argv[1:] in (["--version"], ["-V"]):
        from craterun import __version__

        try:
            os.write(1, f"craterun {__version__}\n".encode())
        except OSError as error:
            print(f"craterun: {os.strerror(error.errno or 0)}", file=sys.stderr)
            sys.exit(_CANNOT_WRITE)
        os._exit(0)  # nothing is open that had to be closed in order
    try:
        from craterun.cli import thin

        thin.try_server(thin.Options(sys.argv[1:]), closed)
        from craterun.cli.app import run_command_line

        code = run_command_line(sys.argv[1:])
    except KeyboardInterrupt:  # before there was a command that could have taken it
        code = _INTERRUPTED
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit without taking the interpreter down: freeing what was imported, object by object, takes
    longer than most commands do. What has to be closed in order has been, and threads that are left
    are there to be abandoned.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or _CANNOT_WRITE  # if not, it was the command that has told of it
    os._exit(code & 0xFF)


def _open_standard_streams() -> tuple[int, ...]:
    """Put /dev/null where a standard stream was closed, as by ``>&-``. Returns which were.

    Otherwise the next socket or file would get that number, and somebody's output with it.
    """
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            closed.append(number)
            name = ("stdin", "stdout", "stderr")[number]
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    return tuple(closed)


if __name__ == "__main__":
    main()
