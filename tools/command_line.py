"""What train.py and test.py share: arguments, config, errors."""
from __future__ import annotations

import argparse
import os
import pickle
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction

from wsld_plugin import compat
from wsld_plugin.caching import TeacherCacheError
from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    DownloadError,
    UnknownModelError,
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing both take."""
    parser.add_argument('--work-dir', help='folder for logs and results')
    add_config_options(parser)
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='do not pin batches in memory')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what starts the processes of a distributed run')
    # torch.distributed.launch passes one or the other, by its version.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        help=argparse.SUPPRESS)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument that overrides what a config says."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override fields of the config; lists as key="[a,b]" or '
        'key=a,b, without blanks')


def read_config(args: argparse.Namespace) -> Config:
    """Read the config file and put the common arguments into it.

    Raises:
        SystemExit: With one line, if the file is missing or is no config.
    """
    compat.quiet()
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg = Config.fromfile(args.config)
    except (OSError, SyntaxError) as error:
        fail(f'cannot read the config {args.config}: {error}')
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    return cfg


def set_dataloader_defaults(loader: ConfigDict | None, *,
                            persistent_workers: bool,
                            pin_memory: bool) -> None:
    """Fill in what a dataloader's config leaves open, as mmpretrain does.

    Args:
        loader: The dataloader's config, changed in place; may be missing.
        persistent_workers: Whether workers, where there are any, should
            outlive an epoch.
        pin_memory: False to forbid pinning; it is of use with CUDA only.
    """
    if loader is None:
        return
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.setdefault('persistent_workers', persistent_workers
                      and loader.get('num_workers', 0) > 0)
    loader.setdefault('pin_memory', torch.cuda.is_available())
    if not pin_memory:
        loader.pin_memory = False


def prepare_devices(cfg: Config) -> None:
    """Ready the finished config for GPUs, or for the CPU where none is.

    Raises:
        SystemExit: With one line, if the config asks for what is not there.
    """
    try:
        compat.prepare_amp(cfg)
        compat.prepare_distributed(cfg)
    except ValueError as error:
        fail(error)


def leave_group() -> None:
    """Leave the other processes of a distributed run, at its end.

    Without it, gloo's threads may be at work when Python ends, which aborts
    the process now and then (seen on torch 2.15, with two launchers).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fail(message: object) -> NoReturn:
    """Leave with exit code 1 and one line on stderr."""
    line = ' '.join(str(message).split())
    sys.exit(f'{Path(sys.argv[0]).name}: {line}')


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a user's mistakes about files into one line instead of a trace."""
    try:
        yield
    except DownloadError as error:
        fail(f'cannot download a checkpoint: {error}')
    except urllib.error.URLError as error:
        fail(f'cannot download a checkpoint: {error}; fetch it by other '
             'means and name the file, such as by --cfg-options '
             'model.teacher_ckpt=PATH')
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError,
            CheckpointMismatchError, UnknownModelError, TeacherCacheError,
            pickle.UnpicklingError) as error:
        fail(error)
    except OSError as error:
        # A full disk or a folder that is read-only, rather than a bug.
        if error.filename is None:
            raise
        fail(error)
