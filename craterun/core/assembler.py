"""Collects the system calls of a program, and keeps count of its descriptors (`core.program`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from craterun.core import opcodes as op
from craterun.core.launchplan import Call
from craterun.core.native import Value, length, value
from craterun.core.steps import Step

S = TypeVar("S", bound=Step)

Slots = dict[object, int]
"""Numbers of open descriptors by what they are for."""

_CODES = {name: (code, number) for code, (name, number) in enumerate(op.CALLS)}
_SPECIAL = {name: len(op.CALLS) + code for code, name in enumerate(op.SPECIAL)}


class Assembler:
    """Collects calls, and keeps count of the descriptors that will be open.

    :param first: number of the first value of these calls
    """

    def __init__(self, slots: Slots, first: int) -> None:
        self.slots = dict(slots)
        self.values = first
        self.calls: list[Call] = []
        self.origins: list[tuple[int, str]] = []
        self.step = 0

    def translate(self, step: Step, translate: Callable[[Assembler, Any], None]) -> None:
        """Add the calls of the next step."""
        translate(self, step)
        self.values += len(step.own())
        self.step += 1

    def own(self, place: int = 0) -> Value:
        """What is at ``place`` in the current step's `own`."""
        return value(self.values + place)

    def length(self, place: int = 0) -> Value:
        """How long that is."""
        return length(self.values + place)

    def call(self, name: str, *arguments: Any, wanted: int | Value | None = 0) -> None:
        """One call of a function named in `opcodes.CALLS`."""
        code, number = _CODES[name]
        if number:
            code, arguments = 0, (number, *arguments)
        self.calls.append((code, arguments, wanted, None))
        self.origins.append((self.step, name))

    def special(self, name: str, *arguments: Any) -> None:
        """One of `opcodes.SPECIAL`."""
        self.calls.append((_SPECIAL[name], arguments, 0, None))
        self.origins.append((self.step, name))

    def open(self, slot: object, name: str, *arguments: Any) -> int:
        """A call that opens the descriptor of ``slot``. Returns its number."""
        used = set(self.slots.values())
        number = next(n for n in range(op.GIVEN_FD, op.GIVEN_FD + len(used) + 1) if n not in used)
        self.call(name, *arguments, wanted=number)
        self.slots[slot] = number
        return number

    def close(self, slot: object) -> None:
        """Close the descriptor of ``slot``."""
        self.call("close", self.slots.pop(slot))

    @contextmanager
    def if_it_worked(self, *errnos: int) -> Iterator[None]:
        """The calls made in this block are left out if the last one before fails with one of
        ``errnos``, or, if there are none, with any. What that one opened is closed in the block.
        """
        position = len(self.calls) - 1
        code, arguments, wanted, _ = self.calls[position]
        yield
        skip = len(self.calls) - 1 - position
        self.calls[position] = (code, arguments, wanted, (errnos, skip))

    def tolerate(self, *errnos: int) -> None:
        """Go on if the last call fails with one of ``errnos``, or, if there are none, with any."""
        with self.if_it_worked(*errnos):
            pass


class Translations(dict[type[Step], Callable[[Assembler, Any], None]]):
    """Which function translates which kind of step."""

    def of(
        self, kind: type[S]
    ) -> Callable[[Callable[[Assembler, S], None]], Callable[[Assembler, S], None]]:
        """A decorator for the function that translates ``kind``."""

        def register(function: Callable[[Assembler, S], None]) -> Callable[[Assembler, S], None]:
            self[kind] = function
            return function

        return register
