"""From a plan to a process: pipes, then a child that is machine code, or Python.

The supervisor's plan has all that there is to decide; here it is carried out.
"""

from __future__ import annotations

import marshal
import os
import resource
import time

from craterun.core import opcodes as op
from craterun.keeper.blank import make_blank
from craterun.keeper.child import carry_out, opening, stamps
from craterun.keeper.kept import EMFILE, Kept, make_pipes, make_room, moved, socket_pair, start_time
from craterun.keeper.native import COMMON, Native, UnavailableError
from craterun.linux import calls

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

_RESERVED_FILES = 8
"""Highest numbers that a launch leaves free: what runs must not fail for want of a descriptor."""
_MAX_PROGRAMS = 256
_FEW = 64
"""With more processes than this, a child's copy of our descriptors, of which it closes nearly all
at once, costs more than what it takes to do without: 4 ms of 10,000 descriptors.
"""


class Launcher:
    """Starts processes for the keeper.

    :ivar native: by machine code, where that is possible
    :ivar open_files: the limits on descriptors that we got, and that every process gets
    """

    def __init__(self) -> None:
        self.native: Native | None = None
        # A handful of descriptors for each container: as many as we may. They get what we got.
        self.open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files[1], self.open_files[1]))
        self.programs: dict[bytes, Any] = {}
        self.blank_namespace = -1

    def start(self, kept: Kept, plan: Any, join: int, others: Collection[Kept]) -> None:
        """Clone the child that carries out ``plan``, and note in ``kept`` what there is of it.

        ``others`` is all that is kept already.

        Raises `OSError` with the name of the call that failed, `UnavailableError` if this cannot be
        done by machine code, and TypeError, ValueError or LookupError if ``plan`` is none.
        """
        parts, values, clone_flags, cgroup, wants_stdin, owner, terminal, merged, blank = plan
        child_ends: list[int] = []
        try:
            kept.error, error_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            child_ends.append(error_end)
            kept.outputs = 1 if terminal or merged else 2
            namespace = self.blank() if blank else -1
            given = tuple(fd for fd in (namespace, join) if fd >= 0)
            if terminal:
                kept.terminal, theirs = socket_pair()
                child_ends.append(theirs.detach())
                given = (*given, child_ends[1])
                streams = (-1, -1, -1)
            else:
                streams = make_pipes(kept, child_ends, wants_stdin, owner, merged)
            born_in = -1
            if cgroup:
                born_in = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                child_ends.append(born_in)
            many = len(others) > _FEW
            if many and max(child_ends) >= COMMON:
                make_room(others, COMMON)
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if max(kept.error, *kept.pipes, *child_ends) >= limit - _RESERVED_FILES:
                raise OSError(EMFILE, "too many open files", "pipe2")
            if values is None:
                self.clone(kept, parts, streams, error_end, given, clone_flags, born_in)
            else:
                table = many and max(child_ends) < COMMON
                self.clone_native(
                    kept, parts, values, streams, error_end, namespace, clone_flags, born_in, table
                )
                if table:
                    kept.lent, child_ends = child_ends, []
            if many:
                kept.pidfd = moved(kept.pidfd, COMMON)
            kept.start_time = start_time(kept.pid)
        finally:
            for fd in child_ends:
                os.close(fd)

    def blank(self) -> int:
        """Descriptor of the blank mount namespace, which is made when it is first needed."""
        if self.blank_namespace < 0:
            if self.native is not None:
                self.native.whole_forks()
            try:
                self.blank_namespace = make_blank()
            finally:
                if self.native is not None:
                    self.native.bare_forks()
        return self.blank_namespace

    def free(self, slot: int) -> None:
        """Nobody reads or writes this slot of `native` any more."""
        if self.native is not None:
            self.native.free(slot)

    def clone(
        self,
        kept: Kept,
        parts: Any,
        streams: tuple[int, int, int],
        error: int,
        given: tuple[int, ...],
        flags: int,
        born_in: int,
    ) -> None:
        """A child that is Python until it executes its command."""
        program = [self.load(part) if isinstance(part, bytes) else part for part in parts]
        first = opening(streams, error, given, self.open_files)
        stamps.reserve(kept.number)
        if self.native is not None:
            self.native.whole_forks()
        try:
            cloning = time.monotonic_ns()
            pid, kept.pidfd = calls.clone3(flags, born_in)
            if pid == 0:
                carry_out(first, program)  # never returns
            kept.times = (cloning, time.monotonic_ns(), 0, 0)
            kept.pid = pid
        finally:
            if self.native is not None:
                self.native.bare_forks()

    def clone_native(
        self,
        kept: Kept,
        parts: Any,
        values: Any,
        streams: tuple[int, int, int],
        error: int,
        blank: int,
        flags: int,
        born_in: int,
        table: bool,
    ) -> None:
        """A child that is machine code until then."""
        if self.native is None:
            raise UnavailableError(op.NEVER)
        cloning = time.monotonic_ns()
        kept.pid, kept.pidfd, kept.slot = self.native.start(
            parts, values, streams, error, flags, born_in, table, blank
        )
        kept.times = (cloning, time.monotonic_ns(), 0, 0)

    def load(self, part: bytes) -> Any:
        """A part of a plan that comes again and again, decoded once."""
        program = self.programs.get(part)
        if program is None:
            if len(self.programs) >= _MAX_PROGRAMS:
                self.programs.clear()
            program = self.programs[part] = marshal.loads(part)  # noqa: S302 (see wire)
        return program
