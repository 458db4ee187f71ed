"""How mmengine 0.10 looks packages up, and how often it lays configs out."""
from __future__ import annotations

import os.path as osp
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

import mmengine.config.config
import mmengine.utils.package_utils
from mmengine.config.utils import MODULE2PACKAGE

from .fix import put_on_record

# Those that bind the functions by name at import.
_BINDING_MODULES = ('mmengine.utils.package_utils', 'mmengine.utils',
                    'mmengine.config.config', 'mmengine.hub.hub')


def apply() -> None:
    """Make ``package::config`` paths resolve, and configs quick to write."""
    _look_modules_up()
    for module, package in MODULE2PACKAGE.items():
        # A fork's: mmengine would install the original over its files.
        if find_spec(module) is not None and _package_dir(package) is None:
            MODULE2PACKAGE[module] = module
            put_on_record('mmengine-fork-names')
    _remember_layouts()


def _remember_layouts() -> None:
    """Keep what yapf made of the last few configs."""
    lay_out = getattr(mmengine.config.config, 'FormatCode', None)
    if lay_out is None:
        # The fork looks it up in yapf, each time.
        return

    @lru_cache(maxsize=8)
    def remembered(text: str, style: tuple[Any, ...], **options: Any) -> Any:
        return lay_out(text, style_config=dict(style), **options)

    def format_code(text: str, style_config: dict[str, Any],
                    **options: Any) -> Any:
        return remembered(text, tuple(style_config.items()), **options)

    mmengine.config.config.FormatCode = format_code
    put_on_record('mmengine-layout')


def _look_modules_up() -> None:
    """Replace mmengine's lookups where there is no pkg_resources."""
    asks = mmengine.utils.package_utils.get_installed_path.__code__.co_names
    if 'pkg_resources' not in asks or find_spec('pkg_resources') is not None:
        return
    for name in _BINDING_MODULES:
        # mmengine.hub is imported later and binds what mmengine.utils has.
        names = vars(sys.modules[name]) if name in sys.modules else {}
        for function in (is_installed, get_installed_path):
            if function.__name__ in names:
                names[function.__name__] = function
    put_on_record('mmengine-package-lookup')


def is_installed(package: str) -> bool:
    """Whether a module or distribution of that name can be imported."""
    return _package_dir(package) is not None


def get_installed_path(package: str) -> str:
    """Folder of a module or distribution, editable installs included.

    Raises:
        ModuleNotFoundError: If nothing of that name is installed.
    """
    folder = _package_dir(package)
    if folder is None:
        raise ModuleNotFoundError(
            f'No package called {package!r} is installed', name=package)
    return folder


def _package_dir(package: str) -> str | None:
    modules = [package]
    try:
        named = distribution(package).read_text('top_level.txt')
        modules += (named or '').split()
    except PackageNotFoundError:
        pass
    for spec in map(find_spec, modules):
        # A namespace package has no origin and thereby no one folder.
        if spec is not None and spec.origin is not None:
            return osp.dirname(spec.origin)
    return None
