"""Two files of a container that is started again whenever it ends (``--restart``).

``spec.json``: what was asked for, for a supervisor that takes it over and has to start it again.
``end``: somebody wants it to end for good; made by any process before it sends the signal.
"""

from __future__ import annotations

import os

import msgspec

from craterun.core.errors import StateError, printable
from craterun.core.spec import Spec

SPEC = "spec.json"
END = "end"


def write_spec(directory: int, spec: Spec) -> None:
    """Write it into the folder ``directory``. Not msgspec's JSON: that has no way to say bytes of
    an argument that are no UTF-8.

    :raises OSError: the disk is full, or the like
    """
    import json  # which containers that are started once do without

    fd = os.open(SPEC, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "w") as file:
        json.dump(msgspec.to_builtins(spec), file)


def read_spec(directory: int) -> Spec:
    """What `write_spec` wrote.

    :raises StateError: it is gone or damaged
    """
    import json

    try:
        fd = os.open(SPEC, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with open(fd) as file:
            return msgspec.convert(json.load(file), Spec)
    except (OSError, ValueError) as error:
        raise StateError(f"{SPEC} cannot be read: {printable(str(error))}") from error


def request_end(path: str) -> None:
    """Have the container whose folder is ``path`` not started again. No error if it is gone."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(os.path.join(path, END), flags, 0o600))
    except FileNotFoundError:
        return


def is_end_requested(directory: int) -> bool:
    """Whether `request_end` was called."""
    try:
        os.stat(END, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
