"""mmrazor's distillers, whose teachers no wrong file may leave random."""
from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from mmengine.logging import print_log
from torch import nn

from .fix import put_on_record
from .import_hook import after_import

_ROOM = 'mmrazor.models.algorithms.distill.configurable'


def apply() -> None:
    """Load teachers strictly, and warn of those without any weights."""
    after_import(f'{_ROOM}.single_teacher_distill', _change_single_teacher)
    # Which has several teachers.
    after_import(
        f'{_ROOM}.datafree_distillation', lambda module: vars(module).update(
            load_checkpoint=_load_of('model.teachers.ckpt_path')))
    put_on_record('mmrazor-teachers')


def _change_single_teacher(module: ModuleType) -> None:
    """Adapt ``SingleTeacherDistill``, and thereby its subclasses."""
    vars(module).update(load_checkpoint=_load_of('model.teacher_ckpt'))
    distill = module.SingleTeacherDistill
    switch = distill.train

    # Runner initialises a model, loads a checkpoint if there is one, and
    # then puts the model in training mode.
    def init_weights(self: Any) -> None:
        if not (self.teacher_trainable
                or getattr(self.teacher, 'is_init', False)):
            self._warn_if_random = _watch_loading(self.teacher)
        super(distill, self).init_weights()

    def train(self: Any, mode: bool = True) -> None:
        switch(self, mode)
        if mode:
            vars(self).pop('_warn_if_random', lambda: None)()

    distill.init_weights, distill.train = init_weights, train


def _load_of(source: str) -> Callable[[nn.Module, str], None]:

    def load_checkpoint(model: nn.Module, filename: str) -> None:
        from ..checkpoints import load_teacher
        load_teacher(model, filename, source)

    return load_checkpoint


def _watch_loading(teacher: nn.Module) -> Callable[[], None]:
    """Note whether any weight is loaded until the result is called."""
    loaded = False

    def note(names: list[str], weights: dict[str, Any], prefix: str,
             *_: Any) -> None:
        nonlocal loaded
        loaded |= any(prefix + name in weights for name in names)

    handles = [
        part._register_load_state_dict_pre_hook(
            partial(note, list(part._parameters)))
        for part in teacher.modules() if part._parameters
    ]

    def warn_if_none() -> None:
        for handle in handles:
            handle.remove()
        if handles and not loaded:
            print_log('The teacher has random weights: neither '
                      'model.teacher_ckpt nor anything else was loaded.',
                      'current', logging.WARNING)

    return warn_if_none
