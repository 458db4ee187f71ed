"""Run something around the first execution of somebody else's module.

The packages adapted here are heavy and imported lazily by mmengine's
registries, so they cannot be imported in order to be changed.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Around = Callable[[ModuleType], AbstractContextManager[Any]]


def around_import(name: str, around: Around) -> None:
    """Enter ``around(module)`` whenever the module's code executes.

    Args:
        name: Full name of the module. If it has been executed already
            nothing happens until it is reloaded.
        around: Gets the new, still empty module.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.around[name] = around


def after_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Call ``change(module)`` now or as soon as the module is imported.

    Args:
        name: Full name of the module.
        change: Gets the executed module.
    """
    if name in sys.modules:
        change(sys.modules[name])

    @contextmanager
    def around(module: ModuleType) -> Iterator[None]:
        yield
        change(module)

    around_import(name, around)


class _Finder(MetaPathFinder):
    """Finds by the other finders and wraps the loaders of some modules."""

    def __init__(self) -> None:
        self.around: dict[str, Around] = {}

    def find_spec(self,
                  fullname: str,
                  path: Sequence[str] | None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.around:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self.around[fullname])
                return spec
        return None


class _Loader(Loader):
    """Executes by another loader, in a context, then leaves the scene."""

    def __init__(self, loader: Loader, around: Around) -> None:
        self._loader = loader
        self._around = around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever asks the module for its source or resources later gets
        # the loader that Python would have used.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._around(module):
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_FINDER = _Finder()
