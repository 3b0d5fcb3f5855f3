"""When a container that has ended is started again, and how long after."""

from __future__ import annotations

import signal
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from craterun.core.errors import UsageError, printable

if TYPE_CHECKING:
    from craterun.core.life import ExitStatus

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 60.0
HEALTHY_SECONDS = 10.0
"""A life that lasted so long is a success: the next pause is the first one again."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL)


class Condition(StrEnum):
    """What makes a container start again."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class RestartPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked for with ``--restart``.

    :ivar condition: after which ends
    :ivar most: how many times at most; None: without end
    """

    condition: Condition = Condition.NO
    most: int | None = None

    def wants(self, status: ExitStatus, restarts: int) -> bool:
        """Whether to start again after this end, having done so ``restarts`` times."""
        if self.condition is Condition.NO or (self.most is not None and restarts >= self.most):
            return False
        return self.condition is Condition.ALWAYS or status.exit_code != 0

    def __str__(self) -> str:
        return str(self.condition) if self.most is None else f"{self.condition}:{self.most}"


def parse_restart(text: str) -> RestartPolicy:
    """``no``, ``on-failure``, ``on-failure:N`` or ``always``.

    :raises UsageError: it is none of these
    """
    condition, colon, most = text.partition(":")
    if condition in set(Condition) and not colon:
        return RestartPolicy(Condition(condition))
    if condition == Condition.ON_FAILURE and most.isascii() and most.isdigit() and int(most) > 0:
        return RestartPolicy(Condition.ON_FAILURE, int(most))
    hint = ""
    if text == "unless-stopped":
        hint = "; no daemon starts containers after a boot, so always means the same: write that"
    raise UsageError(
        f"--restart '{printable(text)}' is not no, on-failure, on-failure:N (N from 1 on) or "
        f"always{hint}"
    )


def pause_before(short_lives: int) -> float:
    """Seconds to wait before the next life, after so many in a row that were not healthy."""
    doublings = min(max(short_lives - 1, 0), 16)
    return float(min(FIRST_PAUSE_SECONDS * 2**doublings, LONGEST_PAUSE_SECONDS))


def ends_for_good(number: int, stop_signal: int) -> bool:
    """Whether whoever sends this signal wants the container to end, and not to come back."""
    return number in _ENDING or number == stop_signal
