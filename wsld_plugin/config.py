"""Read a config, and say in one line what is wrong with it."""
from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

from mmengine.config import Config, DictAction
from mmengine.registry import build_from_cfg
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
# Those that mmengine itself drops where they are None.
_ITS_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger',
              'param_scheduler', 'checkpoint')
_PLAIN = (bool, int, float, str, list, tuple, dict)
# Of difflib: a letter more, less or wrong in a name of six or more.
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
            with lists as ``key=[a,b]`` or ``key=a,b``, dicts as Python has
            them. What stands in quotes, or names an existing file, is one
            string, whatever commas and blanks it holds. Or the keys and
            their values.

    Returns:
        The config, without ``default_hooks`` that are None; what its
        ``custom_imports`` name has been imported.

    Raises:
        ConfigError: In one line, if the file or a base is missing, its code
            or a module of ``custom_imports`` fails, an option does not fit,
            a key on top is nearly, but not, one that is read
            (``optim_wraper``), or holds another kind of value than Runner
            takes.

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
    _refuse_other_types(cfg, path)
    for name, hook in [*(cfg.get('default_hooks') or {}).items()]:
        if hook is None and name not in _ITS_HOOKS:
            del cfg.default_hooks[name]
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
    given = cfg.get('default_hooks')
    hooks = {*_ITS_HOOKS, *(given if isinstance(given, dict) else ())}
    # One after another, or the error would not tell which it was.
    for key, value in options.items():
        place, _, name = key.rpartition('.')
        if place == 'default_hooks' and value is None and name not in hooks:
            raise ConfigError(f'--cfg-options {key}=None: there is no such '
                              f'hook, only {", ".join(sorted(hooks))}')
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
    if re.search('[ ,]', value) and os.path.exists(value):
        return key, value
    found = argparse.Namespace()
    try:
        if re.search(r'^["\'](?![[(])|\bdict\(|{', value):
            return key, literal(value)
        DictAction([], 'options')(argparse.ArgumentParser(), found, [text])
    except AssertionError as error:  # of mmengine's
        raise ConfigError(f'--cfg-options {text}: {error}') from error
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f'--cfg-options {text}: expected Python with texts in quotes, as '
            'in \'custom_hooks=[dict(type="FastStepHook")]\'') from error
    return key, found.options[key]


def literal(code: str | ast.expr) -> Any:
    """Value of Python's literals and of ``dict(key=literal)``.

    Nothing is run: a config may be somebody else's.

    Raises:
        SyntaxError, ValueError: If it is anything else.
    """
    tree = ast.parse(code, mode='eval').body if isinstance(
        code, str) else code
    return ast.literal_eval(_Dicts().visit(tree))


class _Dicts(ast.NodeTransformer):

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Make ``{'key': value}`` of ``dict(key=value)``."""
        self.generic_visit(node)
        if ast.unparse(node.func) != 'dict' or node.args:
            return node
        return ast.Dict([ast.Constant(one.arg) for one in node.keywords],
                        [one.value for one in node.keywords])


def _refuse_misspelt(cfg: Config, path: str) -> None:
    """Refuse a key that would have no effect because of its spelling.

    Configs have variables of their own: those that the code uses, or that
    only number a known key (``model2``), are not meant to be read.
    """
    from mmengine.runner import Runner
    known = {*inspect.signature(Runner).parameters, *_ALSO_READ}
    # Not those of tta, or a train_pipeline would be a misspelt one.
    names = known - {'tta_model', 'tta_pipeline'}
    for key in cfg:
        if key in known or key.strip('_0123456789') in known:
            continue
        used = re.search(rf'\b{re.escape(key)}\b(?!["\']?\s*[=:])', cfg.text)
        similar = [name for name in names if sorted(name) == sorted(key)
                   ] or get_close_matches(key, names, 1, _SIMILAR)
        if similar and not used:
            raise ConfigError(f'{path} sets {key}, which nothing reads; '
                              f'similar: {similar[0]}')


def _refuse_other_types(cfg: Config, path: str) -> None:
    """Refuse what Runner takes for a dict, a list or a text and is none."""
    from mmengine.runner import Runner
    for name, hint in get_type_hints(Runner.__init__).items():
        kinds = {get_origin(kind) or kind for kind in (
            get_args(hint) if get_origin(hint) is Union else [hint])}
        taken = tuple(kinds & {dict, list, str, bool})
        value = cfg.get(name)
        # logging takes numbers, too; what is no plain data is others'.
        if (taken and name != 'log_level' and isinstance(value, _PLAIN)
                and not isinstance(value, (*taken, tuple) if list in kinds
                                   else taken)):
            expected = ' or '.join(sorted(kind.__name__ for kind in taken))
            raise ConfigError(
                f'{path} sets {name} to a {type(value).__name__}, '
                f'{value!r:.50}, expected a {expected}')


def unbuildable(error: BaseException) -> str | None:
    """One line about what of a config cannot be built, and why.

    None if, by the error's traceback, no registry or runner was building, or
    a loop was running: then it is not the config that is to blame.
    """
    from mmengine.runner import BaseLoop, Runner
    what = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name, names = frame.f_code.co_name, frame.f_locals
        if name == 'run' and isinstance(names.get('self'), BaseLoop):
            return None
        if isinstance(names.get('self'), Runner) and name.startswith(
                ('build_', '__init__')):
            what = what or {'__init__': 'a runner'}.get(name, name[6:])
        inner = names.get('optimizer_cfg', names.get('cfg'))
        if (what or frame.f_code is build_from_cfg.__code__) and isinstance(
                inner, Mapping) and 'type' in inner:
            # The innermost is the most telling.
            kind = inner['type']
            what = getattr(kind, '__name__', None) or (
                kind if kind and isinstance(kind, str) else f'type={kind!r}')
    said = str(error.args[0] if error.args else '')
    said = ' '.join(said.partition(' Please check')[0].split())
    if ' ' not in said:
        said = f'{type(error).__name__}: {said}'
    return what and f'cannot build {what}: {said}'
