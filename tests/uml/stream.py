"""What comes out of the guest: the serial line and the console.

The serial line has COMMAND's output, ended by one end marker. The exit code
travels *in* the output stream, behind the last byte of output. So having read it
proves that no output was lost on the way, which an exit code in a file beside the
stream could not: the guest powers off right afterwards, and whatever a serial line
still buffers then is gone. The console has the boot log: kernel messages and what
init has to say.
"""

from __future__ import annotations

import re

#: What init prints on the console right before it starts COMMAND.
READY = b"craterun-uml: guest ready"
#: What init prints on the console, with the reason, when it gives up.
FAILED = b"craterun-uml: init failed"
#: What the kernel prints when it gives up.
_PANIC = b"Kernel panic"

#: Digits of an exit status and the newline after them.
_STATUS = re.compile(rb"(\d{1,3})\n")
_STATUS_BEGUN = re.compile(rb"\d{0,3}\Z")


def marker_head(token: str) -> bytes:
    """Return the bytes that precede the exit status in the end marker.

    ``token`` is drawn anew for each run: no output can hold it by chance. The
    NUL makes a marker unlikely to be mistaken even where the init script
    itself gets printed (``ps``, ``cat``), as that holds it only as ``\\000``.
    """
    return b"\0craterun-uml " + token.encode("ascii") + b" exit "


class OutputSplitter:
    """Separate COMMAND's output from the end marker, however it is chunked."""

    def __init__(self, token: str) -> None:
        """Look for the end marker that has ``token``."""
        self._head = marker_head(token)
        self._held = b""
        self._code: int | None = None

    @property
    def code(self) -> int | None:
        """COMMAND's exit status, or None as long as it has not come."""
        return self._code

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the line; return those that are surely output."""
        if self._code is not None:
            return b""
        self._held += data
        ready: list[bytes] = []
        while (at := self._held.find(self._head)) >= 0:
            ready.append(self._held[:at])
            rest = self._held[at + len(self._head) :]
            status = _STATUS.match(rest)
            if status is not None and int(status[1]) <= 255:
                self._code = int(status[1])
                self._held = b""
                return b"".join(ready)
            if _STATUS_BEGUN.match(rest):
                self._held = self._held[at:]
                return b"".join(ready)
            # No exit status follows, so this was output after all.
            ready.append(self._held[at : at + len(self._head)])
            self._held = rest
        keep = self._begun()
        ready.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return b"".join(ready)

    def finish(self) -> bytes:
        """Return what was held back as a possible marker; the line has ended."""
        held, self._held = self._held, b""
        return held

    def _begun(self) -> int:
        """Return how many bytes at the end may be the start of a marker."""
        for size in range(min(len(self._head) - 1, len(self._held)), 0, -1):
            if self._held.endswith(self._head[:size]):
                return size
        return 0


def failure_reason(log: bytes, timeout: float | None) -> str:
    """Say in one line why no exit code came, from the boot log.

    ``timeout`` is the overall limit in seconds if the guest was killed for being
    late, and None if it ended by itself.
    """
    for sign, text in (
        (_PANIC, "the guest's kernel panicked"),
        (FAILED, "the guest's init failed"),
    ):
        for line in log.splitlines():
            if sign in line:
                said = line[line.index(sign) :].decode("utf-8", "replace").strip()
                return f"{text}: {said}"
    if READY not in log:
        return "the guest did not boot" + ("" if timeout is None else " in time; it was killed")
    if timeout is not None:
        return f"COMMAND did not end within {timeout:g} seconds; the guest was killed"
    return "the guest stopped without an exit code"


def log_tail(log: bytes, count: int) -> list[str]:
    """Return the last ``count`` lines of the boot log, safe to print."""
    lines = log.decode("utf-8", "replace").splitlines()
    printable = ("".join(c for c in line if c.isprintable() or c == "\t") for line in lines)
    return [line for line in printable if line.strip()][-count:]
