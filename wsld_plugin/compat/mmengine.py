"""mmengine 0.10 where setuptools no longer brings pkg_resources."""
from __future__ import annotations

import os.path as osp
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import mmengine.config.config
import mmengine.utils.package_utils

from .fix import put_on_record

# Those that bind the functions by name at import.
_BINDING_MODULES = ('mmengine.utils.package_utils', 'mmengine.utils',
                    'mmengine.config.config', 'mmengine.hub.hub')


def apply() -> None:
    """Make ``package::config`` paths resolve without pkg_resources."""
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
