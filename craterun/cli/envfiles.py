"""--env-file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from craterun.core.errors import UsageError
from craterun.core.units import parse_env_file
from craterun.serve import desk


def read_env_files(paths: Sequence[str]) -> dict[str, str]:
    """The variables of all these files, later ones over earlier ones.

    :raises UsageError: one cannot be read, or is malformed
    :raises DeclinedError: this is a worker of a server, and one is for its client to open
    """
    desk.leave_to_client(*paths, once=True)
    env: dict[str, str] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                env.update(parse_env_file(file.read(), path))
        except OSError as error:
            raise UsageError(f"--env-file {path}: {os.strerror(error.errno or 0)}") from error
    return env
