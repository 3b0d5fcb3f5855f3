"""logs: print and follow what containers wrote."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from craterun.cli import typed
from craterun.cli.output import complain
from craterun.core.errors import CraterunError, UsageError, printable
from craterun.core.instants import parse_instant, rfc3339
from craterun.state.logcursor import LogCursor, Piece, Place
from craterun.state.logindex import Stream
from craterun.state.logtail import find_tail, last_lines
from craterun.state.openlog import OpenLog
from craterun.state.store import Store, default_root

if TYPE_CHECKING:
    from craterun.client.express import ExpressWay

_FLUSH_BYTES = 64 * 1024
_HELD_BYTES = 64 * 1024
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def logs(
    *containers: str,
    follow: typed.Annotated[bool, typed.Parameter(name=["--follow", "-f"])] = False,
    tail: typed.Annotated[str, typed.Parameter(name=["--tail", "-n"])] = "all",
    since: str | None = None,
    until: str | None = None,
    timestamps: typed.Annotated[bool, typed.Parameter(name=["--timestamps", "-t"])] = False,
    stream: typed.Literal["stdout", "stderr"] | None = None,
    merge: bool = False,
) -> int:
    """Print what containers wrote: stdout to stdout, stderr to stderr, byte for byte.

    The two are interleaved in the order in which they were read. Of several containers, each line
    is printed whole and begins with the container that wrote it.

    Times are RFC 3339 (2026-01-31T12:00:00Z), ages (10m, 1h30m) or seconds since 1970. A line has
    the time at which its beginning was read.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    follow
        Go on with what is written from now on, until the container has ended.
    tail
        Print only the last N lines of both streams together, or "all".
    since
        Leave out lines that were written before this time.
    until
        Leave out lines that were written at this time or later.
    timestamps
        Begin each line with its time.
    stream
        Print only this stream.
    merge
        Print both streams to stdout.
    """
    if not containers:
        raise UsageError("which container? Give at least one id, prefix or name")
    now = time.time_ns()
    view = _View(
        lines=_parse_tail(tail),
        since_ns=None if since is None else parse_instant(since, now),
        until_ns=None if until is None else parse_instant(until, now),
        timestamps=timestamps,
        streams=list(Stream) if stream is None else [Stream[stream.upper()]],
        merge=merge,
    )
    store = Store(default_root())
    with ExitStack() as opened:
        shown: list[_Shown] = []
        failed = False
        labels = _labels(containers)
        output = Output()
        for number, text in enumerate(dict.fromkeys(containers)):
            try:
                log = OpenLog(store, text)
            except CraterunError as error:
                complain(str(error))
                failed = True
                continue
            opened.callback(log.close)
            shown.append(_Shown(log, view, output, labels[number], number))
            opened.callback(shown[-1].close)
        if follow:
            from craterun.client.logs import Follower

            outputs = [1] if merge else sorted({int(one) for one in view.streams})
            follower = Follower([one.log for one in shown], outputs)
            opened.callback(follower.close)
            for one in shown:
                one.begin(follow=True)
            follower.run(
                lambda n, over: shown[n].show(over=over),
                output.flush,
                view.until_ns,
                shown[0].express() if len(shown) == 1 else None,
            )
        else:
            for one in shown:
                one.begin(follow=False)
                one.show(over=True)
        output.flush()
        for one in shown:
            try:
                one.log.check_whole()
            except CraterunError as error:
                complain(str(error))
                failed = True
    return 125 if failed else 0


class WholeLog:
    """Both streams of one container as they are, until they end."""

    def __init__(self, log: OpenLog, *, from_start: bool, terminal: bool) -> None:
        """Takes ``log``.

        :param from_start: also what was written before now
        :param terminal: it is that of a terminal, so that there is only one stream
        """
        from craterun.client.logs import Follower

        view = _View(
            lines=None if from_start else 0,
            since_ns=None,
            until_ns=None,
            timestamps=False,
            streams=[Stream.STDOUT] if terminal else list(Stream),
            merge=False,
        )
        self._log = log
        self._output = Output()
        self._shown = _Shown(log, view, self._output, "", 0)
        self._follower = Follower([log], [int(stream) for stream in view.streams])
        self._shown.begin(follow=True)

    def copy(self) -> None:
        """To our stdout and stderr, until the end or until their readers are gone."""
        try:
            self._follower.run(
                lambda _, over: self._shown.show(over=over),
                self._output.flush,
                None,
                self._shown.express(),
            )
            self._output.flush()
        except BrokenPipeError:
            return
        finally:
            self._follower.close()
            self._shown.close()
            self._log.close()


def _parse_tail(text: str) -> int | None:
    if text == "all":
        return None
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise UsageError(f"--tail '{printable(text)}' is not a number of lines: write 10, or all")


def _labels(containers: Sequence[str]) -> list[str]:
    """What each line begins with: nothing if there is only one container."""
    texts = [printable(text) for text in dict.fromkeys(containers)]
    width = max(map(len, texts))
    return [f"{text:{width}} | " for text in texts] if len(texts) > 1 else [""]


class _View(NamedTuple):
    """What is asked for."""

    lines: int | None
    since_ns: int | None
    until_ns: int | None
    timestamps: bool
    streams: list[Stream]
    merge: bool

    def cursor(self, directory: int, start: Place | None = None) -> LogCursor:
        """A cursor that gives out what is asked for."""
        return LogCursor(
            directory,
            streams=self.streams,
            timed=self.timestamps,
            since_ns=self.since_ns,
            until_ns=self.until_ns,
            start=start,
        )

    def start(self, directory: int) -> Place | None:
        """Where --tail begins; None: at the beginning."""
        if self.lines is None:
            return None
        if self.since_ns is None and self.until_ns is None:
            return find_tail(directory, self.lines, self.streams)
        # The last lines of a part of the log are counted from the beginning of that part.
        cursor = self.cursor(directory)
        cursor.stop_here()
        try:
            starts = last_lines(cursor.read(final=True), self.lines)
        finally:
            cursor.close()
        return Place(1, 0, {**cursor.positions, **starts})


class _Shown:
    """One container's log on its way to our output."""

    def __init__(self, log: OpenLog, view: _View, output: Output, label: str, number: int) -> None:
        self.log = log
        self._view = view
        self._cursor: LogCursor | None = None
        self._told = dict.fromkeys(Stream, 0)
        self._lines: dict[Stream, Lines] = {}
        if label or view.timestamps:
            for stream in Stream:
                target = 1 if view.merge else int(stream)
                whole = bool(label) or view.merge
                prefix = _coloured(label, number, target)
                self._lines[stream] = Lines(
                    output, target, prefix, timestamps=view.timestamps, whole=whole
                )
        self._output = output

    def begin(self, *, follow: bool) -> None:
        """Find out where to begin."""
        self._cursor = self._view.cursor(self.log.directory, self._view.start(self.log.directory))
        if not follow:
            self._cursor.stop_here()

    def show(self, *, over: bool) -> bool:
        """Print what is new. Returns whether that was the end.

        :param over: nobody will write any more
        """
        assert self._cursor is not None
        self._print(self._cursor, final=over)
        if self._cursor.ended and not over:
            self._print(self._cursor, final=True)
        if over or self._cursor.ended or self._cursor.complete:
            for lines in self._lines.values():
                lines.finish()
            return True
        return False

    def _print(self, cursor: LogCursor, *, final: bool) -> None:
        for piece in cursor.read(final=final):
            self._put(piece)
        for stream in self._view.streams:
            missed = cursor.missed[stream] - self._told[stream]
            if missed:
                self._told[stream] += missed
                self._output.flush()
                complain(
                    f"container {self.log.id}: {missed} bytes of {stream.name.lower()} were "
                    "removed by log rotation before they could be printed"
                )

    def _put(self, piece: Piece) -> None:
        lines = self._lines.get(piece.stream)
        if lines is not None:
            lines.put(piece.time_ns, piece.data)
        else:
            self._output.write(1 if self._view.merge else int(piece.stream), piece.data)

    def express(self) -> ExpressWay | None:
        """To our output as it is, if that is what is asked for."""
        from craterun.client.express import ExpressWay

        view, cursor = self._view, self._cursor
        if self._lines or view.until_ns is not None or cursor is None:
            return None
        targets = {stream: 1 if view.merge else int(stream) for stream in view.streams}
        return ExpressWay(cursor, targets, self._output.write_now)

    def close(self) -> None:
        """Close the cursor."""
        if self._cursor is not None:
            self._cursor.close()


def _coloured(label: str, number: int, target: int) -> bytes:
    """``label`` in a colour of its own, where colours are welcome."""
    plain = not label or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not os.isatty(target):
        return label.encode()
    return f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{label}\x1b[0m".encode()


class Output:
    """Our stdout and stderr: small writes are gathered, and the order between the two is kept."""

    def __init__(self) -> None:
        self._target = 1
        self._gathered = bytearray()
        self._amid: dict[int, object] = {}

    def write(self, target: int, data: bytes, source: object = None) -> None:
        """Write to descriptor ``target``.

        :param source: if given, whose line this is; another's unfinished line is ended first
        """
        if target != self._target:
            self.flush()
            self._target = target
        if source is not None:
            if self._amid.get(target, source) is not source:
                self._gathered += b"\n"
            if data.endswith(b"\n"):
                self._amid.pop(target, None)
            else:
                self._amid[target] = source
        self._gathered += data
        if len(self._gathered) >= _FLUSH_BYTES:
            self.flush()

    def write_now(self, target: int, data: bytes) -> None:
        """Write to descriptor ``target``, however long its reader takes."""
        self.write(target, data)
        self.flush()

    def flush(self) -> None:
        """Write what was gathered, however long the reader takes."""
        data = bytes(self._gathered)
        self._gathered.clear()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._target, rest) :]
            except BlockingIOError:  # somebody made the description that we share non-blocking
                poll = select.poll()
                poll.register(self._target, select.POLLOUT)
                poll.poll()


class Lines:
    """Puts a prefix before each line of one stream.

    :param whole: lines of others go to the same place, so print a line when it is complete, or
        when it has become too long to be kept
    """

    def __init__(
        self, output: Output, target: int, label: bytes, *, timestamps: bool, whole: bool
    ) -> None:
        self._output = output
        self._target = target
        self._label = label
        self._timestamps = timestamps
        self._whole = whole
        self._amid = False
        self._held = b""

    def put(self, time_ns: int, data: bytes) -> None:
        """A chunk, and when it came."""
        prefix = self._label + (f"{rfc3339(time_ns)} ".encode() if self._timestamps else b"")
        parts = [self._held]
        if self._amid:
            newline = data.find(b"\n") + 1 or len(data)
            parts.append(data[:newline])
            data = data[newline:]
        if data:
            end = data.rfind(b"\n")
            if end >= 0:
                parts += [prefix, data[:end].replace(b"\n", b"\n" + prefix), b"\n"]
            if data[end + 1 :]:
                parts += [prefix, data[end + 1 :]]
        text = b"".join(parts)
        self._amid = not text.endswith(b"\n")
        self._held = b""
        if self._whole and self._amid:
            end = text.rfind(b"\n") + 1
            if len(text) - end < _HELD_BYTES:
                text, self._held = text[:end], text[end:]
        if text:
            self._output.write(self._target, text, self)

    def finish(self) -> None:
        """The stream has ended: its last line is as complete as it will ever be."""
        if self._held:
            self._output.write(self._target, self._held, self)
            self._held = b""
