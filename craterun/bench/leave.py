"""How a process with a craterun supervisor in it leaves early, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from craterun.bench import signals
from craterun.core.errors import CraterunError


@asynccontextmanager
async def cancelled_on_signals() -> AsyncIterator[None]:
    """Cancel the body on SIGTERM, SIGHUP or SIGINT, and exit when it has unwound.

    An exception out of a signal handler would come up anywhere, also where the
    supervisor is just about to note what it has made.  One of the body's comes
    up as it is, and of several that are all errors of craterun's the first one.
    """
    # Not trio's signal receiver: a further signal, that nobody has taken from
    # it, it hands to whoever had that signal before, in the midst of leaving.
    scope = trio.CancelScope()
    token = trio.lowlevel.current_trio_token()
    with signals.instead(lambda: token.run_sync_soon(scope.cancel, idempotent=True)):
        try:
            with scope:
                yield
        except BaseExceptionGroup as group:
            signals.leave_if_told()
            ours, others = group.split(CraterunError)
            if others is None and ours is not None:
                raise _first(ours) from None
            raise
    signals.leave_if_told()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
