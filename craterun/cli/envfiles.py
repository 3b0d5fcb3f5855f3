"""--env-file."""

from __future__ import annotations

import os
from collections.abc import Iterable

from craterun.core.errors import UsageError
from craterun.core.units import parse_env_file


def read_env_files(paths: Iterable[str]) -> dict[str, str]:
    """The variables of all these files, later ones over earlier ones.

    :raises UsageError: one cannot be read, or is malformed
    """
    env: dict[str, str] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                env.update(parse_env_file(file.read(), path))
        except OSError as error:
            raise UsageError(f"--env-file {path}: {os.strerror(error.errno or 0)}") from error
    return env
