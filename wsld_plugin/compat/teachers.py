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
    """Note which weights are loaded until the result is called."""
    known = tuple(f'{name}.' for name, part in teacher.named_modules()
                  if getattr(part, 'is_init', False))
    random = dict.fromkeys(name for name, _ in teacher.named_parameters()
                           if not name.startswith(known))

    def note(where: str, names: list[str], weights: dict[str, Any],
             prefix: str, *_: Any) -> None:
        for name in names:
            if prefix + name in weights:
                random.pop(f'{where}{name}', None)

    handles = [
        part._register_load_state_dict_pre_hook(
            partial(note, f'{path}.' if path else '', list(part._parameters)))
        for path, part in teacher.named_modules() if part._parameters
    ]

    def warn_of_random() -> None:
        for handle in handles:
            handle.remove()
        if random:
            some = ', '.join([*random][:3])
            print_log(
                f'The teacher has random weights: {len(random)} of its '
                f'parameters ({some}{", ..." if len(random) > 3 else ""}) '
                'were in nothing that was loaded.', 'current',
                logging.WARNING)

    return warn_of_random
