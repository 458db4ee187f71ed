"""Run something around the first execution of somebody else's module.

The packages adapted here are heavy and imported lazily by mmengine's
registries, so they cannot be imported in order to be changed.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Around = Callable[[ModuleType], AbstractContextManager[Any]]


def around_import(name: str, around: Around) -> None:
    """Enter ``around(module)`` whenever a module's code executes.

    Args:
        name: Full name of the module, which may wait for a reload.
        around: Gets the new, still empty module.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.around[name] = around


def after_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Call ``change(module)`` now or as soon as it has been imported."""
    if name in sys.modules:
        change(sys.modules[name])

    @contextmanager
    def around(module: ModuleType) -> Iterator[None]:
        yield
        change(module)

    around_import(name, around)


class _Finder(MetaPathFinder):
    """Finds by the other finders, and surrounds what some modules do."""

    def __init__(self) -> None:
        self.around: dict[str, Around] = {}

    def find_spec(
            self, fullname: str, path: Sequence[str] | None,
            target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.around:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(
                fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _wrap(spec.loader, self.around[fullname])
                return spec
        return None


def _wrap(loader: Any, around: Around) -> None:
    """Let a loader execute its next module in a context, that one alone."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop('exec_module', None)
        with around(module):
            execute(module)

    loader.exec_module = exec_module


_FINDER = _Finder()
