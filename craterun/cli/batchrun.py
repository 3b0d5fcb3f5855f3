"""A batch on the command line: its input, its output, its signals."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

import trio

from craterun.batch.ledger import Ledger
from craterun.batch.options import Options
from craterun.batch.runner import Batch
from craterun.batch.running import Host
from craterun.cli.batchview import BatchView, hint, summary
from craterun.cli.output import complain
from craterun.cli.signals import heeded
from craterun.cli.streams import OutputSink, read_stdin
from craterun.core.errors import CraterunError, UsageError, printable

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Where a batch's lines come from, and where its results go.

    :ivar root: the state directory
    :ivar source: descriptor of the input
    :ivar source_name: what to call that
    :ivar output: the file of results; None: stdout
    """

    root: str
    source: int
    source_name: str
    output: str | None
    resume: bool
    rerun_failed: bool
    quiet: bool


def open_ledger(options: Options, ends: Ends) -> Ledger | None:
    """The file of results, if there is one. The caller closes it.

    :raises UsageError: it must not be written to
    :raises OSError: it cannot be opened
    """
    source = os.fstat(ends.source)
    if ends.output is None:
        if stat.S_ISREG(source.st_mode) and os.path.samestat(source, os.fstat(1)):
            raise UsageError("the results would be appended to the input, and be read as jobs")
        return None
    with suppress(OSError):
        if os.path.samestat(source, os.stat(ends.output)):
            raise UsageError(f"--output {printable(ends.output)} is the input")
    return Ledger(
        ends.output,
        ends.root,
        resume=ends.resume,
        rerun_failed=ends.rerun_failed,
        attempts=options.attempts,
    )


async def conduct(
    options: Options,
    ends: Ends,
    ledger: Ledger | None,
    hosting: Callable[[], AbstractAsyncContextManager[Host]],
    closing: trio.Event | None = None,
) -> int:
    """Run the batch. Returns the exit code.

    :param ledger: taken
    :param hosting: opens who starts its containers; left, none of them runs
    :param closing: set when all containers are ended from without
    """
    sink = OutputSink(1)
    try:
        with trio.open_signal_receiver(*(n for n in heeded() if n in _ENDING)) as signals:
            async with hosting() as host:
                return await _Conductor(options, ends, ledger, host, sink).run(signals, closing)
    finally:
        sink.close()
        if ledger is not None:
            ledger.close()


class _Conductor:
    def __init__(
        self,
        options: Options,
        ends: Ends,
        ledger: Ledger | None,
        host: Host,
        sink: OutputSink,
    ) -> None:
        self._ends = ends
        self._sink = sink
        self._writing = trio.Lock()
        self._signal: int | None = None
        self._batch = Batch(
            host,
            options,
            self._read,
            self._print if ledger is None else _nowhere,
            ledger=ledger,
            changed=self._changed,
            complain=self._complain,
        )
        self._view: BatchView | None = None
        if not ends.quiet and BatchView.is_wanted():
            batch, size = self._batch, _size(ends.source)
            self._view = BatchView(
                batch.counts, lambda: batch.lines.consumed, size, lambda: batch.halted
            )

    async def run(self, signals: AsyncIterator[int], closing: trio.Event | None) -> int:
        """To the end. Returns the exit code."""
        begun = trio.current_time()
        broken: OSError | None = None
        async with trio.open_nursery() as around:
            around.start_soon(self._heed, signals, around.cancel_scope)
            if closing is not None:
                around.start_soon(self._heed_end, closing)
            if self._view is not None:
                around.start_soon(self._view.show)
            try:
                await self._batch.run()
            except OSError as error:
                broken = error
            finally:
                if self._view is not None:
                    self._view.close()
                    self._view = None
            around.cancel_scope.cancel()
        if isinstance(broken, BrokenPipeError):
            raise broken
        if broken is not None:
            where = "stdout" if self._ends.output is None else printable(self._ends.output)
            raise CraterunError(
                f"results cannot be written to {where}: {os.strerror(broken.errno or 0)}"
                f"{_remedy(broken, self._ends)}"
            )
        counts = self._batch.counts
        if not self._ends.quiet:
            complain(summary(counts, trio.current_time() - begun))
            advice = hint(counts, output=self._ends.output is not None)
            if advice is not None:
                complain(advice)
        if self._signal is not None:
            return 128 + self._signal
        if self._batch.abandoned:
            rest = "go on with --resume" if self._ends.output else "the rest of the input was left"
            raise CraterunError(
                f"the server, whose containers they were, was shut down before the end; {rest}"
            )
        return 1 if counts.failed or counts.cancelled or counts.skipped_failed else 0

    async def _heed(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        """The first one asks what runs to end, the second kills it, the third waits for nobody."""
        count = 0
        async for number in signals:
            count += 1
            if count == 1:
                self._signal = number
                self._batch.stop()
                if sys.stderr.isatty() and not self._ends.quiet:
                    self._complain("ending what runs; press Ctrl-C once more to kill it")
            elif count == 2:
                self._batch.kill()
            else:
                everything.cancel()

    async def _heed_end(self, closing: trio.Event) -> None:
        await closing.wait()
        self._batch.abandon()

    async def _read(self) -> bytes:
        try:
            return await read_stdin(self._ends.source)
        except OSError as error:
            if error.errno == errno.EBADF:  # it is open, but not for that
                why = "it is not open for reading"
            else:
                why = os.strerror(error.errno or 0)
            raise CraterunError(f"cannot read {self._ends.source_name}: {why}") from error

    async def _print(self, result: bytes) -> None:
        async with self._writing:
            if self._view is not None:
                self._view.erase()
            await self._sink.write(result)
        if self._sink.error is not None:
            raise self._sink.error
        if self._sink.gone:
            raise BrokenPipeError

    def _changed(self) -> None:
        if self._view is not None:
            self._view.changed()

    def _complain(self, message: str) -> None:
        if self._view is not None:
            self._view.erase()
        complain(message)


def _remedy(error: OSError, ends: Ends) -> str:
    """What to do about results that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if ends.output is None:
            return "; make room, and run it again with --output, which can be gone on with"
        return "; make room, then go on with --resume"
    return "" if ends.output is None else "; when that is mended, go on with --resume"


async def _nowhere(_: bytes) -> None:
    """The ledger has it."""


def _size(source: int) -> int | None:
    """Of a regular file, what is left to be read of it."""
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size - os.lseek(source, 0, os.SEEK_CUR)
