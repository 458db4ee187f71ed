"""mmrazor 1.0.0 on torch 2, and it and its peers on mmcv 2.2."""
from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from mmengine.utils import digit_version

from .fix import put_on_record
from .import_hook import around_import

# The three modules that ask at import for torch >= 1.13 and then build tables
# out of torch.ao's quantization tools, of which torch 2.0 dropped some.
_QUANTIZATION_MODULES = (
    'mmrazor.structures.quantization.backend_config.'
    'common_operator_config_utils',
    'mmrazor.structures.quantization.backend_config.mapping',
    'mmrazor.models.quantizers.native_quantizer',
)
# Newest release that each accepts, where it is installed. mmrazor imports the
# others, and takes nothing but an ImportError for their absence.
_NEWEST_MMCV = {
    'mmrazor': '2.1.0',
    'mmseg': '2.1.0',
    'mmdet': '2.1.0',
    'mmcls': '2.0.1'
}


def apply() -> None:
    """Ready mmrazor for the installed torch and mmcv, without importing it."""
    if digit_version(torch.__version__) >= digit_version('2.0.0'):
        for name in _QUANTIZATION_MODULES:
            around_import(name, _quantization_left_out)
        put_on_record('mmrazor-quantization')
    mmcv_version = _mmcv_version()
    if mmcv_version is None:
        around_import('mmrazor', _mmcv_named_if_missing)
        around_import('mmpretrain', _mmcv_named_if_missing)
        put_on_record('mmcv-missing')
        return
    for name, newest in _NEWEST_MMCV.items():
        if digit_version(mmcv_version) > digit_version(newest) and find_spec(
                name) is not None:
            around_import(name, partial(_mmcv_taken_for, newest))
            put_on_record('mmcv-ceiling')


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
    importing = True

    def answer(version: str, *args: int) -> tuple[int, ...]:
        # Modules imported by `module` may keep this function: they get the
        # truth once `module` has been executed.
        if importing and version == torch.__version__:
            version = '1.12.1'
        return digit_version(version, *args)

    try:
        with patch.object(mmrazor, 'digit_version', answer):
            yield
    finally:
        importing = False
        module.__dict__['digit_version'] = digit_version


@contextmanager
def _mmcv_taken_for(version: str, module: ModuleType) -> Iterator[None]:
    """Let ``mmcv.__version__`` read another one meanwhile."""
    import mmcv
    with patch.object(mmcv, '__version__', version):
        yield


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
