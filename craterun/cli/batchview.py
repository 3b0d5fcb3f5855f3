"""How far a batch is: a line on the terminal while it runs, and one at its end."""

from __future__ import annotations

from collections.abc import Callable

import trio

from craterun.batch.options import Counts
from craterun.batch.results import Failure
from craterun.cli.output import shorten
from craterun.cli.screen import can_draw, columns
from craterun.cli.streams import OutputSink

_PAUSE_SECONDS = 0.25
"""What has changed within this time is shown together."""


class BatchView:
    """The line. It is drawn when something has changed, and costs nothing without a terminal."""

    def __init__(
        self,
        counts: Counts,
        consumed: Callable[[], int],
        size: int | None,
        halted: Callable[[], bool] = lambda: False,
    ) -> None:
        """:param consumed: bytes of the input that were read
        :param size: of the whole input, if that is known
        :param halted: whether it is read no further
        """
        self._counts = counts
        self._consumed = consumed
        self._size = size
        self._halted = halted
        self._news = trio.Event()
        self._sink = OutputSink(2)
        self._drawn = False
        self._clock = trio.current_time
        self._begun = self._clock()
        self._work_begun: tuple[float, int] | None = None

    @staticmethod
    def is_wanted() -> bool:
        """Whether there is somebody to look at it."""
        return can_draw(2)

    def changed(self) -> None:
        """The counts have."""
        if self._work_begun is None and self._counts.running:
            # What an earlier batch has done is skipped in no time, which says nothing of the rest.
            self._work_begun = self._clock(), self._consumed()
        self._news.set()

    async def show(self) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            self.draw()
            await trio.sleep(_PAUSE_SECONDS)

    def draw(self) -> None:
        """Now. What the terminal does not take at once, because it was stopped, is left out."""
        line = shorten(self.text(), max(1, columns(2) - 1))
        self._sink.write_now(memoryview(f"\r\x1b[K{line}".encode()))
        self._drawn = True

    def text(self) -> str:
        """The line."""
        counts = self._counts
        parts = [f"{counts.done} done"]
        if counts.skipped:
            parts.append(f"{counts.skipped} before")
        if counts.failed:
            parts.append(f"{counts.failed} failed")
        parts.append(f"{counts.running} running")
        now = self._clock()
        if counts.done:
            parts.append(f"{rate(counts.done, now - self._begun)}")
        if self._size and self._work_begun is not None and not self._halted():
            begun, before = self._work_begun
            read, rest = self._consumed() - before, self._size - self._consumed()
            # At the end of the input, nothing tells how long the last jobs take. Negative: it has
            # grown since.
            if read > 0 and counts.done and rest > 0:
                parts.append(f"{duration(rest * (now - begun) / read)} left")
        return ", ".join(parts)

    def erase(self) -> None:
        """Take the line away, before something else is printed."""
        if self._drawn:
            self._sink.write_now(memoryview(b"\r\x1b[K"))
            self._drawn = False

    def close(self) -> None:
        """Show nothing more."""
        self.erase()
        self._sink.close()


def rate(count: int, seconds: float) -> str:
    """``12.3/s``."""
    value = count / max(seconds, 1e-9)
    return f"{value:.0f}/s" if value >= 10 else f"{value:.1f}/s"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def summary(counts: Counts, seconds: float) -> str:
    """What it came to: one line."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.failures.items()))
    parts = [f"{counts.done} job{'' if counts.done == 1 else 's'}: {counts.succeeded} succeeded"]
    parts.append(f"{counts.failed} failed{f' ({kinds})' if kinds else ''}")
    if counts.cancelled:
        parts.append(f"{counts.cancelled} cancelled")
    if counts.retried:
        parts.append(f"{counts.retried} tried again")
    if counts.skipped:
        failed = f" ({counts.skipped_failed} failed)" if counts.skipped_failed else ""
        parts.append(f"{counts.skipped} done before{failed}")
    return f"{', '.join(parts)}; {duration_exact(seconds)}, {rate(counts.done, seconds)}"


def hint(counts: Counts, *, output: bool) -> str | None:
    """What to do about it, where there is something to be done; one line.

    :param output: whether there is a file of results to go on with
    """
    number = counts.failures.get(Failure.ERROR, 0)
    if not number or not output:
        return None
    jobs, them = ("1 job", "it") if number == 1 else (f"{number} jobs", "them")
    return (
        f"{jobs} failed by fault of the host (see error in the results); when that is mended, run "
        f"{them} again by --resume --rerun-failed"
    )


def duration_exact(seconds: float) -> str:
    """`duration`, but with a tenth of a second while that is of interest."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
