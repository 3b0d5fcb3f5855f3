"""The cgroup v2 tier: run a command in a User Mode Linux guest.

``python -m tests.uml -- COMMAND...`` boots Debian's ``linux.uml`` with the
host's files as its root and a unified cgroup v2 tree, and runs COMMAND there.
"""

from __future__ import annotations

import os

#: Set to ``1`` in COMMAND's environment, and nowhere else.
IN_UML_VARIABLE = "CRATERUN_IN_UML"


def in_uml() -> bool:
    """Tell whether this process runs in the guest that ``tests.uml`` boots."""
    return os.environ.get(IN_UML_VARIABLE) == "1"
