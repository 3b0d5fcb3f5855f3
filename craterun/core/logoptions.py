"""How a container's output is kept."""

from __future__ import annotations

from typing import Literal

import msgspec

from craterun.core.errors import UsageError
from craterun.core.units import format_bytes, parse_bytes

DEFAULT_MAX_BYTES = 100 * 1024 * 1024
DEFAULT_MAX_FILES = 3
MIN_MAX_BYTES = 4096
"""Below that, rotating would cost more than writing."""


class LogOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One container's log.

    :ivar driver: ``"file"``: files in the container's folder; ``"none"``: nothing is kept, and only
        readers that are attached see the output
    :ivar max_bytes: no file of the log becomes larger; 0: no bound
    :ivar max_files: how many files of each kind are kept, the one being written included
    """

    driver: Literal["file", "none"] = "file"
    max_bytes: int = DEFAULT_MAX_BYTES
    max_files: int = DEFAULT_MAX_FILES

    def check(self) -> None:
        """Raise `UsageError` for values that make no sense."""
        if self.max_bytes < 0 or 0 < self.max_bytes < MIN_MAX_BYTES:
            raise UsageError(
                f"a log of at most {self.max_bytes} bytes is too small: give "
                f"{format_bytes(MIN_MAX_BYTES)} or more, or unlimited"
            )
        if self.max_files < 1:
            raise UsageError(
                f"{self.max_files} log files are too few: give 1 or more; --log-driver none keeps "
                "no log"
            )


def parse_log_options(
    driver: str | None, max_size: str | None, max_files: int | None
) -> LogOptions:
    """From the command line; None: not given.

    :param max_size: a size such as ``100m``; ``0``, ``max`` or ``unlimited``: no bound
    :raises UsageError: malformed, or bounds for a log that is not kept
    """
    if driver == "none":
        if max_size is not None or max_files is not None:
            raise UsageError(
                "--log-max-size and --log-max-files have no use with --log-driver none"
            )
        return LogOptions(driver="none")
    size = DEFAULT_MAX_BYTES
    if max_size is not None:
        size = 0 if max_size in ("unlimited", "max") else parse_bytes(max_size, "--log-max-size")
    options = LogOptions(
        max_bytes=size, max_files=DEFAULT_MAX_FILES if max_files is None else max_files
    )
    options.check()
    return options
