"""mmengine 0.10 where setuptools no longer brings pkg_resources."""
from __future__ import annotations

import os.path as osp
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import mmengine.config.config
import mmengine.utils.package_utils

from .fix import Fix, put_on_record

# Those that bind the functions by name at import.
_BINDING_MODULES = ('mmengine.utils.package_utils', 'mmengine.utils',
                    'mmengine.config.config', 'mmengine.hub.hub')


def apply() -> None:
    """Make ``package::config`` paths resolve without pkg_resources."""
    asks = mmengine.utils.package_utils.get_installed_path.__code__.co_names
    if 'pkg_resources' not in asks or find_spec('pkg_resources') is not None:
        return
    for name in _BINDING_MODULES:
        # mmengine.hub is imported lazily and then binds what mmengine.utils
        # has.
        module = sys.modules.get(name)
        if module is None:
            continue
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
    put_on_record(
        Fix(
            name='mmengine-package-lookup',
            package='mmengine 0.10',
            versions='setuptools>=82',
            reason='configs that inherit from "package::config" cannot be '
            'read: mmengine looks packages up by pkg_resources',
            upstream='mmengine/utils/package_utils.py'))


def is_installed(package: str) -> bool:
    """Whether a module or distribution of that name can be imported.

    Args:
        package: Name of a module (``mmpretrain``) or of a distribution
            (``mmsegmentation``).
    """
    return _package_dir(package) is not None


def get_installed_path(package: str) -> str:
    """Folder of a package, editable installs included.

    Args:
        package: Name of a module (``mmpretrain``) or of a distribution
            (``mmsegmentation``).

    Returns:
        Path of the folder with the package's ``__init__.py``.

    Raises:
        ModuleNotFoundError: If nothing of that name is installed.
    """
    folder = _package_dir(package)
    if folder is None:
        raise ModuleNotFoundError(
            f'No package called {package!r} is installed', name=package)
    return folder


def _package_dir(package: str) -> str | None:
    for module in (package, *_top_level_modules(package)):
        spec = find_spec(module)
        # A namespace package has no origin and thereby no one folder.
        if spec is not None and spec.origin is not None:
            return osp.dirname(spec.origin)
    return None


def _top_level_modules(package: str) -> list[str]:
    try:
        text = distribution(package).read_text('top_level.txt')
    except PackageNotFoundError:
        return []
    return (text or '').split()
