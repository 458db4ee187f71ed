"""Read a config, and say in one line what is wrong with it."""
from __future__ import annotations

import argparse
import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.utils import import_modules_from_strings
from yaml import YAMLError

# What a config's code, which is anybody's, may raise.
_ANYTHING = (ArithmeticError, AssertionError, AttributeError, ImportError,
             LookupError, NameError, OSError, RuntimeError, SyntaxError,
             TypeError, ValueError, YAMLError)
# mmengine's functions that read one file, `filename`.
_READERS = ('_file2dict', '_is_lazy_import', '_parse_lazy_import')
# What mmengine and the tools read besides the arguments of Runner.
_ALSO_READ = ('activation_checkpointing', 'compile', 'custom_imports',
              'efficient_conv_bn_eval', 'find_unused_parameters',
              'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn',
              'tta_model', 'tta_pipeline')
# Of difflib: a letter more, less, wrong or swapped in a name of six or more.
_SIMILAR = 0.83


class ConfigError(ValueError):
    """A config cannot be read, or does not say what it seems to say."""


def load_config(path: str | os.PathLike[str],
                options: Mapping[str, Any] | Iterable[str] | None = None
                ) -> Config:
    """Read a config file and override fields of it.

    Args:
        path: File of Python, JSON or YAML.
        options: What ``--cfg-options`` takes: ``'model.distiller.tau=4'``,
            with lists as ``key=[a,b]`` or ``key=a,b``. What stands in quotes,
            or names an existing file, is one string, whatever commas and
            blanks it holds. Or the keys and their values.

    Returns:
        The config; what its ``custom_imports`` name has been imported.

    Raises:
        ConfigError: In one line, if the file or a base is missing, its code
            or a module of ``custom_imports`` fails, an option does not fit,
            or a key on top is nearly, but not, one that is read
            (``optim_wraper``).

    Examples:
        >>> load_config('nowhere.py')
        Traceback (most recent call last):
        wsld_plugin.config.ConfigError: cannot read the config nowhere.py: \
no such file
    """
    path = os.fspath(path)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except _ANYTHING as error:
        raise ConfigError(f'cannot read the config {path}'
                          f'{_explained(error, path)}') from error
    _override(cfg, options or {})
    _refuse_misspelt(cfg, path)
    try:
        if cfg.get('custom_imports'):
            import_modules_from_strings(**cfg.custom_imports)
    except (ImportError, TypeError) as error:
        raise ConfigError(
            f'the custom_imports of {path}: {error} '
            f'({error.__context__ or type(error).__name__}); PYTHONPATH must '
            'name the folder of the module') from error
    return cfg


def _explained(error: BaseException, path: str) -> str:
    """File and line of an error in a config, and what it says."""
    file, line = path, None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in _READERS:
            file, line = frame.f_locals['filename'], None
        elif frame.f_code.co_filename == os.path.abspath(file):
            line = number
    if isinstance(error, SyntaxError):
        line, said = error.lineno, error.msg
    elif isinstance(error, FileNotFoundError) and not os.path.exists(file):
        said = 'no such file'
    else:
        said = f'{type(error).__name__}: {" ".join(str(error).split())}'
    where = '' if _same(file, path) else f', its base {file}'
    where += '' if line is None else f', line {line}'
    return f'{where}: {said}'


def _same(*paths: str) -> bool:
    return len({os.path.abspath(os.path.expanduser(p)) for p in paths}) == 1


def _override(cfg: Config, options: Mapping[str, Any] | Iterable[str]) -> None:
    if not isinstance(options, Mapping):
        options = dict(map(_option, options))
    # One after another, or the error would not tell which it was.
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except (AttributeError, KeyError, TypeError) as error:
            said = ' '.join(str(error).split()).partition('. You may')[0]
            raise ConfigError(f'--cfg-options {key}={value}: the config has '
                              f'nothing that could take it ({said})'
                              ) from error


def _option(text: str) -> tuple[str, Any]:
    """Key and value of what stands on a command line."""
    key, equals, value = text.partition('=')
    if not equals or not all(key.split('.')):
        raise ConfigError(f'--cfg-options {text}: expected KEY=VALUE')
    if re.fullmatch(r"""'[^'[(][^']*'|"[^"[(][^"]*\"""", value):
        return key, value[1:-1]
    if re.search('[ ,]', value) and os.path.exists(value):
        return key, value
    found = argparse.Namespace()
    try:
        DictAction([], 'options')(argparse.ArgumentParser(), found, [text])
    except AssertionError as error:  # of mmengine's
        raise ConfigError(f'--cfg-options {text}: {error}') from error
    return key, found.options[key]


def _refuse_misspelt(cfg: Config, path: str) -> None:
    """Refuse a key that would have no effect because of its spelling.

    Configs have variables of their own: those that the code uses, or that
    only number a known key (``model2``), are not meant to be read.
    """
    from mmengine.runner import Runner
    known = {*inspect.signature(Runner).parameters, *_ALSO_READ}
    for key in cfg:
        if key in known or key.strip('_0123456789') in known:
            continue
        # Not those of tta, or a train_pipeline would be a misspelt one.
        similar = max(
            known - {'tta_model', 'tta_pipeline'},
            key=lambda name: SequenceMatcher(None, key, name).ratio())
        ratio = SequenceMatcher(None, key, similar).ratio()
        used = re.search(rf'\b{re.escape(key)}\b(?!["\']?\s*[=:])', cfg.text)
        swapped = sorted(key) == sorted(similar)
        if (swapped or ratio > _SIMILAR) and not used:
            raise ConfigError(f'{path} sets {key}, which nothing reads; '
                              f'similar: {similar}')
