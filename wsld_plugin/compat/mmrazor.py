"""mmrazor 1.0.0 on torch 2 and on mmcv 2.2."""
from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from mmengine.utils import digit_version

from .fix import Fix, put_on_record
from .import_hook import around_import

# The three modules that ask at import for torch >= 1.13 and then build
# tables out of torch.ao's quantization tools.
_QUANTIZATION_MODULES = (
    'mmrazor.structures.quantization.backend_config.'
    'common_operator_config_utils',
    'mmrazor.structures.quantization.backend_config.mapping',
    'mmrazor.models.quantizers.native_quantizer',
)
# Gone from torch.ao since torch 2.0; mmrazor needs them in the first of those.
_FUSER_HELPERS = ('reverse2', 'reverse3', 'reverse_sequential_wrapper2')
# Newest release that mmrazor 1.0.0 accepts.
_NEWEST_MMCV = '2.1.0'


def apply() -> None:
    """Ready mmrazor for the installed torch and mmcv, without importing it."""
    if _torch_lacks_fuser_helpers():
        for name in _QUANTIZATION_MODULES:
            around_import(name, _quantization_left_out)
        put_on_record(
            Fix(
                name='mmrazor-quantization',
                package='mmrazor 1.0.0',
                versions='torch>=2.0',
                reason='its quantization modules use names that torch.ao no '
                'longer has, and mmrazor.models imports them; they are '
                'imported as on torch 1.12, that is, left empty',
                upstream='mmrazor/structures/quantization/backend_config/'
                'common_operator_config_utils.py'))
    mmcv_version = _mmcv_version()
    if mmcv_version is None:
        around_import('mmrazor', _mmcv_named_if_missing)
        around_import('mmpretrain', _mmcv_named_if_missing)
        put_on_record(
            Fix(
                name='mmcv-missing',
                package='mmrazor 1.0.0, mmpretrain',
                versions='mmcv not installed',
                reason='their import error does not say that mmcv-lite '
                'will do',
                upstream='mmrazor/__init__.py'))
    elif digit_version(mmcv_version) > digit_version(_NEWEST_MMCV):
        around_import('mmrazor', _mmcv_taken_for_newest_known)
        put_on_record(
            Fix(
                name='mmrazor-mmcv-ceiling',
                package='mmrazor 1.0.0',
                versions=f'mmcv>{_NEWEST_MMCV}',
                reason='it refuses every newer mmcv at import',
                upstream='mmrazor/__init__.py'))


def _torch_lacks_fuser_helpers() -> bool:
    try:
        torch_has = import_module(
            'torch.ao.quantization.fuser_method_mappings')
    except ModuleNotFoundError:
        return True
    return not all(hasattr(torch_has, name) for name in _FUSER_HELPERS)


def _mmcv_version() -> str | None:
    """Version of the mmcv that would be imported, None if there is none."""
    spec = find_spec('mmcv')
    if spec is None or spec.origin is None:
        return None
    # mmcv and mmcv-lite are two distributions of one module, so the
    # distribution's metadata would have to be guessed; and importing mmcv
    # to ask it would import OpenCV.
    version_file = Path(spec.origin).with_name('version.py')
    return runpy.run_path(str(version_file))['__version__']


@contextmanager
def _quantization_left_out(module: ModuleType) -> Iterator[None]:
    """Let ``mmrazor.digit_version`` take torch for 1.12.1 meanwhile."""
    import mmrazor
    before = mmrazor.digit_version
    importing = True

    def answer(version: str, *args: int) -> tuple[int, ...]:
        # Modules imported by `module` may keep this function: they get the
        # truth once `module` has been executed.
        if importing and version == torch.__version__:
            version = '1.12.1'
        return digit_version(version, *args)

    mmrazor.digit_version = answer
    try:
        yield
    finally:
        importing = False
        mmrazor.digit_version = before
        module.__dict__['digit_version'] = digit_version


@contextmanager
def _mmcv_taken_for_newest_known(module: ModuleType) -> Iterator[None]:
    """Let ``mmcv.__version__`` read 2.1.0 meanwhile."""
    import mmcv
    before = mmcv.__version__
    mmcv.__version__ = _NEWEST_MMCV
    try:
        yield
    finally:
        mmcv.__version__ = before


@contextmanager
def _mmcv_named_if_missing(module: ModuleType) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise
        raise ModuleNotFoundError(
            f'{module.__name__} needs mmcv: install mmcv-lite '
            '(pip install "mmcv-lite>=2.1.0,<2.3"), or the full mmcv where '
            'there is a build for your torch. Never install one over the '
            f'other. ({error})',
            name='mmcv') from error
