"""A launch plan: steps, together with the system calls that they consist of.

`core.plan` decides on the steps, `core.program` translates them. What steps of one shape have in
common is translated once, and shared by all plans (`Template`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from craterun.core.native import Native, Value
from craterun.core.steps import Step, Values

Call = tuple[int, tuple[Any, ...], int | Value | None, tuple[tuple[int, ...], int] | None]
"""(function, arguments, wanted, lenient), as `core.program` explains."""


class Template(msgspec.Struct, frozen=True, eq=False):
    """The system calls that steps of one shape consist of (`core.program`).

    :ivar number: tells it apart from all others of this process
    :ivar calls: with a `core.native.Value` in place of what is a step's own
    :ivar origins: for each call, the index of its step and its name
    :ivar native: the same for machine code; None if it takes Python to make the calls
    :ivar code: the calls marshalled, if none of them has anything of its own
    :ivar values: how many values of their own the steps have
    """

    number: int
    calls: tuple[Call, ...]
    origins: tuple[tuple[int, str], ...]
    native: Native | None
    code: bytes | None
    values: int


class Part(msgspec.Struct, frozen=True):
    """Some steps of a plan, and the system calls that they consist of.

    :ivar first: number of the first of their own values
    """

    steps: tuple[Step, ...]
    template: Template
    first: int

    @property
    def origins(self) -> tuple[tuple[int, str], ...]:
        """For each call, the index of its step and its name."""
        return self.template.origins

    def own(self) -> Values:
        """What the steps have of their own."""
        return tuple([value for step in self.steps for value in step.own()])

    @property
    def code(self) -> tuple[Call, ...] | bytes:
        """The calls for Python: a tuple of them, or the same marshalled where other plans have it,
        too, so that neither end has to make it anew.
        """
        return self.template.code or self._bound()

    def _bound(self) -> tuple[Call, ...]:
        values = self.own()

        def bind(argument: Any) -> Any:
            if isinstance(argument, Value):
                number, is_length = argument
                own = values[number - self.first]
                return len(own) if is_length else own
            if isinstance(argument, tuple):
                return tuple(bind(part) for part in argument)
            return argument

        return tuple(
            (function, bind(arguments), bind(wanted), lenient)
            for function, arguments, wanted, lenient in self.template.calls
        )


class LaunchPlan(msgspec.Struct, frozen=True):
    """All that the keeper needs to launch one process.

    :ivar parts: carried out in order by the child
    :ivar clone_flags: namespaces that the child is created in (clone3(2))
    :ivar cgroup: version 2 cgroup that the child is born in, or b""
    :ivar stdin: whether the process gets an input pipe
    :ivar owner: uid that owns the output pipes, so that the process can reopen /dev/stdout
    :ivar terminal: whether it gets a terminal instead of pipes
    :ivar merged: whether standard output and error are one pipe
    :ivar blank: whether it gets the blank mount namespace (`keeper.blank`)
    """

    parts: tuple[Part, ...]
    clone_flags: int
    cgroup: bytes
    stdin: bool
    owner: int
    terminal: bool = False
    merged: bool = False
    blank: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps."""
        return tuple(step for part in self.parts for step in part.steps)

    def origin(self, number: int) -> tuple[Step, str]:
        """The step that call ``number`` belongs to, and the call's name."""
        for part in self.parts:
            if number < len(part.origins):
                step, call = part.origins[number]
                return part.steps[step], call
            number -= len(part.origins)
        raise IndexError(number)

    @property
    def is_native(self) -> bool:
        """Whether machine code can carry it out."""
        return all(part.template.native is not None for part in self.parts)


class FilledPlan(msgspec.Struct, frozen=True):
    """A plan of many containers, with what is particular to this one. For machine code only.

    :ivar like: has the calls
    :ivar values: in place of what its steps have of their own
    :ivar cgroup: in place of its cgroup
    :ivar whole: makes the plan as `core.plan.plan_run` does: for a Python child, and to explain a
        failure
    """

    like: LaunchPlan
    values: Values
    cgroup: bytes
    whole: Callable[[], LaunchPlan]


def whole(plan: LaunchPlan | FilledPlan) -> LaunchPlan:
    """``plan``, all of it."""
    return plan.whole() if isinstance(plan, FilledPlan) else plan
