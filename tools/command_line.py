"""The package's module, until all tools import that."""
from __future__ import annotations

from typing import Any

from _start import add_config_options, add_run_arguments
from mmengine.config import Config

from wsld_plugin import command_line as new
from wsld_plugin.command_line import (
    fail,
    leave_group,
    one_line_errors,
    prepare_devices,
    read_run_config,
)

add_common_arguments, read_config = add_run_arguments, read_run_config



def set_dataloader_defaults(loader: Any, *, persistent_workers: bool,
                            pin_memory: bool) -> None:
    """Of the training set of a classifier, for cache_teacher.py."""
    new.set_dataloader_defaults(
        Config(
            dict(
                model=dict(type='ImageClassifier'), train_dataloader=loader)),
        'train',
        persistent_workers=persistent_workers,
        pin_memory=pin_memory)


__all__ = [
    'add_common_arguments',
    'add_config_options',
    'fail',
    'leave_group',
    'one_line_errors',
    'prepare_devices',
    'read_config',
    'set_dataloader_defaults',
]
