"""Modules that trio imports for what commands never do (TLS, names of hosts): executed at their
first use. And some that are not missed at all.

`importlib.util.LazyLoader` does that, too, but takes the next import of the module for a use of it.
"""

from __future__ import annotations

import importlib.machinery
from collections.abc import Sequence
from types import ModuleType

TYPE_CHECKING = False  # importlib.abc is a slow import (compression modules)
if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object

_NAMES = frozenset(("hmac", "idna", "ipaddress", "ssl"))
"""No packages whose modules somebody imports by themselves: that could be before them."""
_DISPENSABLE = frozenset(("typing_extensions",))
"""Whoever asks for these takes the standard library in their place, which has it all by now."""
_ASKED_BY_IMPORTS = ("__cached__", "__file__", "__path__")


class _Postponed(ModuleType):
    """A module that has not been executed yet."""

    def __getattr__(self, name: str) -> object:
        # Only of what is not there, and so not of what every import looks at.
        if name in _ASKED_BY_IMPORTS:
            raise AttributeError(name)
        loader = self.__dict__["__loader__"]
        assert isinstance(loader, _PostponingLoader)
        loader.execute(self)
        return getattr(self, name)


class _PostponingLoader(Loader):
    """Loads a module without executing it.

    :ivar real: what executes it
    """

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Something that executes the module when it is first used."""
        return _Postponed(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing, for now."""

    def execute(self, module: ModuleType) -> None:
        """Make it what it would have been."""
        module.__class__ = ModuleType
        module.__loader__ = self.real
        if module.__spec__ is not None:
            module.__spec__.loader = self.real
        self.real.exec_module(module)


class LaterFinder:
    """An entry of sys.meta_path that finds those modules, and has them executed later."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Where the module is, with a loader that does not execute it.

        :raises ModuleNotFoundError: it is dispensable
        """
        if name in _DISPENSABLE:
            raise ModuleNotFoundError(f"{name} is not needed", name=name)
        if name not in _NAMES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PostponingLoader(spec.loader)
        return spec
