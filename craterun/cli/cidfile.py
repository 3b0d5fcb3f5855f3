"""--cidfile: a file for the id of a container."""

from __future__ import annotations

import errno
import os

from craterun.core.errors import CraterunError, UsageError


class CidFile:
    """--cidfile: claimed before anything is started, removed if nothing was."""

    def __init__(self, path: str | None, *, claimed: bool = False) -> None:
        """:param claimed: another process has done that for us"""
        self._path = path
        self._claimed = claimed
        self._written = False

    def __enter__(self) -> CidFile:
        if self._path is not None and not self._claimed:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(self._path, flags, 0o644))
            except OSError as error:
                remedy = "; remove it, or name another file" * (error.errno == errno.EEXIST)
                raise UsageError(
                    f"--cidfile {self._path}: {os.strerror(error.errno or 0)}{remedy}"
                ) from error
        return self

    def write(self, container_id: str) -> None:
        """Write the id."""
        if self._path is not None:
            try:
                with open(self._path, "w") as file:
                    file.write(container_id)
            except OSError as error:
                raise CraterunError(
                    f"--cidfile {self._path}: {os.strerror(error.errno or 0)} "
                    f"(container {container_id})"
                ) from error
            self._written = True

    def __exit__(self, *_: object) -> None:
        if self._path is not None and not self._written:
            os.unlink(self._path)
