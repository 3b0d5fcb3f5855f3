"""Where the time of one container goes: the phases of its life, one after the other.

Supervisor, keeper and child read CLOCK_MONOTONIC (clock_gettime(2)), which is the same clock for
all of them and costs no system call. Each phase ends where the next begins.
"""

from __future__ import annotations

import msgspec


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds of each phase, in the order in which they come; None: not known.

    CLOCK_MONOTONIC stands still while the machine is suspended.

    :ivar queue: from the request to the beginning of its preparation: until it was let in, its
        rootfs was looked at, and others' file work was done
    :ivar prepare: launch plan, state directory and cgroups, until the request to the keeper is sent
    :ivar request: until the keeper has taken it up and made the pipes
    :ivar clone: clone3(2), as its caller sees it
    :ivar setup: what the child does: mounts, cgroups, credentials, until it calls execve(2)
    :ivar exec: until the keeper knows that execve(2) has succeeded
    :ivar run: until the keeper is told of the exit (the pidfd is readable). The kernel does not
        tell when it was; nobody in user space can know earlier
    :ivar exit_notice: until the supervisor knows how it ended
    :ivar drain: until both output streams have ended and are in the log
    :ivar conclude: cgroups removed and log files closed; the final record, which this is in, is
        still to be written
    """

    queue: int | None = None
    prepare: int | None = None
    request: int | None = None
    clone: int | None = None
    setup: int | None = None
    exec: int | None = None
    run: int | None = None
    exit_notice: int | None = None
    drain: int | None = None
    conclude: int | None = None


class Asked(msgspec.Struct, frozen=True):
    """The supervisor's times of a start, in nanoseconds of CLOCK_MONOTONIC; 0: not known."""

    asked: int = 0
    begun: int = 0
    sent: int = 0


class Started(msgspec.Struct, frozen=True):
    """The keeper's and the child's times of a start, likewise."""

    cloning: int = 0
    cloned: int = 0
    executing: int = 0
    executed: int = 0


class Ended(msgspec.Struct, frozen=True):
    """The keeper's times of an end; ``executed`` once more, for whoever took over meanwhile."""

    executed: int = 0
    exited: int = 0


def of_start(asked: Asked, started: Started) -> Phases:
    """Everything up to execve(2)."""
    # A child's time that is not between its neighbours' is another's, or none at all.
    sound = started.cloning < started.executing <= started.executed
    executing = started.executing if sound else 0
    return Phases(
        queue=_micros(asked.asked, asked.begun),
        prepare=_micros(asked.begun, asked.sent),
        request=_micros(asked.sent, started.cloning),
        clone=_micros(started.cloning, started.cloned),
        setup=_micros(started.cloned, executing),
        exec=_micros(executing, started.executed),
    )


def with_end(phases: Phases | None, ended: Ended, known: int, drained: int, now: int) -> Phases:
    """``phases`` and everything from execve(2) on.

    :param known: when the supervisor learned how it ended
    :param drained: when the output was complete
    :param now: when the final record is made
    """
    return msgspec.structs.replace(
        phases or Phases(),
        run=_micros(ended.executed, ended.exited),
        exit_notice=_micros(ended.exited, known),
        drain=_micros(known, drained),
        conclude=_micros(drained, now),
    )


def _micros(begin: int, end: int) -> int | None:
    """No less than 0: the child may be ahead of its parent, which then reads the clock later."""
    return max(0, end - begin + 500) // 1000 if begin and end else None
