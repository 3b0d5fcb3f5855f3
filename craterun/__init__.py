"""craterun: Linux containers from Python, without an engine and without a daemon.

Three processes share the work. The *keeper* (`craterun.keeper`) launches, parents and reaps the
containers: small, single-threaded, and alive as long as they are. The *supervisor*
(`craterun.supervisor`) watches them through file descriptors in a trio nursery and writes their
logs and records. The *command line* (`craterun.cli`) is a thin user of it, as is any program that
imports this package.

Layers, none of which imports what stands to its right::

    core < linux < keeper < supervisor < client < serve < cli        state needs core only

Start reading at `core.spec` (what can be asked for) and `supervisor.container` (one container's
whole life). Names here are imported on first use, so that no program pays for what it does not use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that the keeper does without
__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from craterun.core.errors import CraterunError
    from craterun.core.events import Event, EventType
    from craterun.core.life import ExitStatus, Record, State
    from craterun.core.limits import Limits
    from craterun.core.spec import Spec
    from craterun.linux.userns import become_root
    from craterun.state.logs import Stream
    from craterun.state.store import Store
    from craterun.supervisor.container import Container
    from craterun.supervisor.execution import Execution
    from craterun.supervisor.main import Supervisor

_PUBLIC = {
    "Container": "craterun.supervisor.container",
    "CraterunError": "craterun.core.errors",
    "Event": "craterun.core.events",
    "EventType": "craterun.core.events",
    "Execution": "craterun.supervisor.execution",
    "ExitStatus": "craterun.core.life",
    "Limits": "craterun.core.limits",
    "Record": "craterun.core.life",
    "Spec": "craterun.core.spec",
    "State": "craterun.core.life",
    "Store": "craterun.state.store",
    "Stream": "craterun.state.logs",
    "Supervisor": "craterun.supervisor.main",
    "become_root": "craterun.linux.userns",
}

__all__ = [
    "Container",
    "CraterunError",
    "Event",
    "EventType",
    "Execution",
    "ExitStatus",
    "Limits",
    "Record",
    "Spec",
    "State",
    "Store",
    "Stream",
    "Supervisor",
    "__version__",
    "become_root",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
