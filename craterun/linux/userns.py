"""Root, or a way to be it."""

from __future__ import annotations

import os

from craterun.core.errors import NeedsRootError


def require_root() -> None:
    """Check that this process may create containers.

    :raises NeedsRootError: it is not root
    """
    if os.geteuid() != 0:
        raise NeedsRootError(
            f"containers need root, and this is uid {os.geteuid()}; run it with sudo"
        )
