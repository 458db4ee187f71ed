"""What the tools do around their one call: configs, devices, errors."""
from __future__ import annotations

import argparse
import errno
import inspect
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from . import compat
from .caching import TeacherCacheError
from .checkpoints.loading import CheckpointError, load_weights, read_checkpoint
from .checkpoints.student import student_model, student_weights
from .config import ConfigError, load_config, unbuildable


def fail(message: object, code: int = 2) -> NoReturn:
    """Leave with one line on stderr; exit code 2 is a user's mistake."""
    line = ' '.join(str(message).split())
    print(f'{Path(sys.argv[0]).name}: {line}', file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn a user's mistakes into one line and exit code 2, not a trace.

    Mistakes are wrong configs and checkpoints, files that cannot be read or
    written, and ``more``. Ctrl-C is one line, too, and exit code 130. What
    others are known to chat about is silenced.
    """
    compat.quiet()
    mistakes: tuple[type[Exception], ...] = (ConfigError, CheckpointError,
                                             TeacherCacheError, *more)
    try:
        yield
    except KeyboardInterrupt:
        # Workers of loaders, or they would miss this process in a trace.
        for child in multiprocessing.active_children():
            child.terminate()
        fail('interrupted', 130)
    except mistakes as error:
        fail(error)
    except (ArithmeticError, AssertionError, AttributeError, ImportError,
            LookupError, RuntimeError, TypeError, ValueError) as error:
        mistake = unbuildable(error)
        if mistake is None:
            raise
        fail(mistake)
    except OSError as error:
        # A full disk or a folder that is read-only, rather than a bug.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        fail(error)


def read_run_config(args: argparse.Namespace,
                    split: str = 'train') -> Config:
    """Read the config of a run, and put its command line into it.

    Args:
        args: With ``config``, ``cfg_options``, ``work_dir``, ``launcher``
            and ``local_rank``, as the tools take them.
        split: ``'train'`` or ``'test'``: what the run is over.

    Returns:
        The config, with what dataloaders leave open as mmpretrain fills it.

    Raises:
        ConfigError: As :func:`wsld_plugin.config.load_config`, and if there
            is no model or no ``{split}_dataloader``.
    """
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    for key in ('model', f'{split}_dataloader'):
        if not cfg.get(key):
            raise ConfigError(f'{args.config} has no {key}')
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir')
        or f'./work_dirs/{Path(args.config).stem}')
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        if _is_classification(cfg):
            loader.setdefault('collate_fn', dict(type='default_collate'))
        workers = loader.get('num_workers', 0)
        if not isinstance(workers, int):
            raise ConfigError(f'{args.config} sets {split}_dataloader.'
                              f'num_workers to {workers!r:.50}, expected an '
                              'integer')
        # Workers that outlive an epoch keep their random state, which a
        # resumed run could not restore.
        loader.setdefault('persistent_workers',
                          split != 'train' and workers > 0)
        loader.setdefault('pin_memory', torch.cuda.is_available())
    return cfg


def _is_classification(cfg: Config) -> bool:
    """Whether ``ClsDataPreprocessor`` gets the batches; others want lists."""
    student = student_model(cfg.model)
    preprocessor = student.get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {}
    if not isinstance(preprocessor, dict):
        return False
    kind = preprocessor.get('type')
    # Which is what mmpretrain's classifiers take if nothing is said.
    names = ('ClsDataPreprocessor', ) if kind else (
        'ImageClassifier', 'TimmClassifier', 'HuggingFaceClassifier')
    kind = kind or student.get('type')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2] in names


def use_mixed_precision(cfg: Config) -> None:
    """Train in float16 on a GPU, in bfloat16 on the CPU.

    A ConfigError if ``optim_wrapper`` is another one than mmengine's.
    """
    wrapper = cfg.get('optim_wrapper')
    kind = wrapper.get('type', 'OptimWrapper') if wrapper else None
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp cannot replace optim_wrapper.type={kind}, '
                          'expected OptimWrapper')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')
    if not torch.cuda.is_available():
        wrapper.setdefault('dtype', 'bfloat16')


def use_test_time_augmentation(cfg: Config) -> None:
    """Test with the config's augmentations, by default with flips.

    A ConfigError if it does not say how to average, or what to augment.
    """
    if 'tta_model' not in cfg and not _is_classification(cfg):
        raise ConfigError('--tta needs tta_model in the config')
    dataset = cfg.test_dataloader.dataset
    if not dataset.get('pipeline'):
        raise ConfigError('--tta needs test_dataloader.dataset.pipeline')
    *head, pack = deepcopy(dataset.pipeline)
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    dataset.pipeline = cfg.get('tta_pipeline') or [
        *head, dict(type='TestTimeAug', transforms=[flips, [pack]])
    ]
    model = dict(
        cfg.get('tta_model') or dict(type='mmpretrain.AverageClsScoreTTA'),
        module=cfg.model)
    if cfg.model.get('data_preprocessor'):
        # Or Runner would give it the config's, which is for other models.
        model.setdefault('data_preprocessor', cfg.model.data_preprocessor)
    cfg.model = model


def show_pictures(cfg: Config, *, show: bool, folder: str | None,
                  wait_time: float, interval: int) -> None:
    """Have the config's visualization hook draw the test's pictures.

    Every ``interval``-th goes to ``folder``, or is shown in a window for
    ``wait_time`` seconds. A ConfigError if there is no such hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if not hook:
        raise ConfigError('--show and --show-dir need default_hooks.'
                          'visualization=dict(type="VisualizationHook")')
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as hooks:
        kind = hooks.get(hook.type) if isinstance(hook.type,
                                                  str) else hook.type
    # Each package's own has other arguments.
    takes = inspect.signature(kind).parameters if kind else ()
    hook.update({
        'enable' if 'enable' in takes else 'draw': True
    }, show=show, wait_time=wait_time, interval=interval)
    for name in {'out_dir', 'test_out_dir'} & {*takes}:
        hook[name] = folder
        break
    else:
        if folder is not None and cfg.get('visualizer'):
            cfg.visualizer.save_dir = folder


def prepare_devices(cfg: Config) -> None:
    """Ready the finished config for GPUs, or for the CPU where none is.

    A ConfigError if it asks for what is not there.
    """
    try:
        compat.prepare_amp(cfg)
        compat.prepare_distributed(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a finished config.

    Raises:
        ConfigError: As :func:`prepare_devices`.
        CheckpointError: If what it starts from cannot be read.
    """
    prepare_devices(cfg)
    resume, start = cfg.get('resume', False), cfg.get('load_from')
    if resume and start is None:
        start = find_latest_checkpoint(cfg.work_dir)
    if start is not None:
        # What Runner raises would be a trace.
        read_checkpoint(start, training=resume)
    return (RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg)(cfg)


def evaluate_student(cfg: Config,
                     checkpoint: str,
                     predictions: str | None = None) -> dict[str, Any]:
    """Metrics of a student: alone, or taken out of a distiller's checkpoint.

    Args:
        cfg: Finished config whose ``model`` is the student.
        checkpoint: Path or URL of its weights, or of a distiller's.
        predictions: File for them, if they are wanted.

    Raises:
        ConfigError: As :func:`prepare_devices`.
        CheckpointError: If the weights cannot be read or do not fit.
    """
    weights = student_weights(
        read_checkpoint(checkpoint)['state_dict'], checkpoint)
    runner = build_runner(cfg)
    load_weights(runner.model, weights, checkpoint)
    if predictions is not None:
        runner.test_evaluator.metrics.append(DumpResults(predictions))
    return runner.test()


def goes_on(work_dir: str) -> bool:
    """Whether torchrun started this process again, after a checkpoint.

    ``tools/dist_train.sh`` says with ``WSLD_LAUNCHED``, in seconds since
    1970, when it started the first ones: what is older in the folder is of
    another training.
    """
    launched = os.environ.get('WSLD_LAUNCHED')
    if not (launched and int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))):
        return False
    last = Path(work_dir, 'last_checkpoint')
    return last.is_file() and last.stat().st_mtime >= float(launched)


def leave_group() -> None:
    """Leave the other processes of a distributed run, at its end.

    Without it, gloo's threads may be at work when Python ends, which aborts
    the process now and then (seen on torch 2.15, with two launchers).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
