"""No wrong or missing file leaves a teacher random without a word."""
from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from tiny_training import config, distiller, tiny_resnet
from torch import Tensor, nn

from wsld_plugin.checkpoints import CheckpointMismatchError

Weights = dict[str, Tensor]
RANDOM = 'The teacher has random weights'


def build(cfg: dict[str, Any]) -> Any:
    with DefaultScope.overwrite_default_scope('mmrazor'):
        return MODELS.build(cfg)


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def check_equal(module: nn.Module, weights: Weights) -> None:
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(3)
    return build(tiny_resnet()).state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'teacher.pth'


MISFITS: dict[str, Callable[[Weights], Weights]] = {
    'missing keys .*head.fc.bias':
    lambda w: {key: w[key] for key in w if key != 'head.fc.bias'},
    'unexpected key .*more':
    lambda w: {**w, 'more': torch.zeros(1)},
    'size mismatch':
    lambda w: {**w, 'head.fc.bias': torch.zeros(11)},
    r"distillation's, of which the student would fit.*prefix='architecture\.'":
    lambda w: {**prefixed('architecture.', w), 'teacher.more': w['head.fc.bias']},
    r"distillation's, of which the teacher would fit.*prefix='teacher\.'":
    lambda w: prefixed('module.', {
        **prefixed('teacher.', w), 'architecture.more': w['head.fc.bias']}),
    "distillation's, of which nothing would fit":
    lambda w: {'architecture.more': w['head.fc.bias']},
}


@pytest.mark.parametrize('complaint', MISFITS)
def test_file_that_does_not_fit_is_refused(complaint: str, weights: Weights,
                                           path: Path) -> None:
    torch.save(dict(state_dict=MISFITS[complaint](weights)), path)
    with pytest.raises(CheckpointMismatchError, match=complaint) as error:
        build(dict(distiller(), teacher_ckpt=str(path)))
    said = str(error.value)
    assert said.startswith(f'model.teacher_ckpt={path} does not fit')
    assert "init_cfg=dict(type='Pretrained'" in said
    assert '\n' not in said
    assert len(said) < 1300


@pytest.mark.parametrize('rename', [
    lambda w: w,
    lambda w: prefixed('module.', w),
    lambda w: {key.partition('.')[2]: w[key] for key in w},
    lambda w: {key: w[key] for key in w if 'num_batches' not in key},
], ids=['own', 'wrapped', 'torchvision', 'old'])
def test_file_that_fits_is_loaded(rename: Callable[[Weights], Weights],
                                  weights: Weights, path: Path) -> None:
    torch.save(rename(weights), path)
    model = build(dict(distiller(), teacher_ckpt=str(path)))
    check_equal(model.teacher, weights)


def test_all_distillers_with_teachers_are_strict(weights: Weights,
                                                 path: Path) -> None:
    torch.save(prefixed('architecture.', weights), path)
    with pytest.raises(CheckpointMismatchError, match='model.teacher_ckpt='):
        build(dict(distiller(), type='FpnTeacherDistill',
                   teacher_ckpt=str(path)))
    parts = dict(distiller=distiller()['distiller'])
    with pytest.raises(
            CheckpointMismatchError, match='model.teachers.ckpt_path='):
        build(dict(
            type='DataFreeDistillation', architecture=tiny_resnet(),
            generator_distiller=parts['distiller'], generator=tiny_resnet(),
            teachers=dict(one=dict(
                build_cfg=tiny_resnet(), ckpt_path=str(path))), **parts))


def test_mmrazor_by_itself_passes_over_it(weights: Weights,
                                          path: Path) -> None:
    from mmrazor.models.algorithms.distill.configurable import (
        single_teacher_distill as module,
    )
    source = inspect.getsource(module)
    assert 'from mmengine.runner import load_checkpoint' in source, (
        'it loads teachers in another way: is the fix still needed?')
    torch.save(prefixed('architecture.', weights), path)
    teacher = build(tiny_resnet())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    load_checkpoint(teacher, str(path))
    check_equal(teacher, before)


@pytest.mark.parametrize('case, warned', [
    ('nothing', True),
    ('wrong init_cfg', True),
    ('init_cfg', False),
    ("backbone's init_cfg", False),
    ('teacher_ckpt', False),
    ('load_from', False),
    ('loaded module', False),
    ('trainable', False),
])
def test_random_teacher_is_warned_of_whatever_the_hooks(
        case: str, warned: bool, weights: Weights, path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(prefixed('architecture.', weights), path)
    cfg = config(str(path.parent))
    cfg.experiment_name = path.parent.name
    cfg.train_cfg.max_epochs = 1
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    # What a child config leaves of our hooks.
    cfg.custom_hooks = [dict(type='FastStepHook')]
    pretrained = dict(type='Pretrained', checkpoint=str(path))
    if case == 'wrong init_cfg':
        cfg.model.teacher.init_cfg = pretrained
    elif case == 'init_cfg':
        # As the error message says.
        cfg.model.teacher.init_cfg = dict(pretrained, prefix='architecture.')
    elif case == "backbone's init_cfg":
        cfg.model.teacher.backbone.init_cfg = dict(
            pretrained, prefix='architecture.backbone.')
    elif case == 'teacher_ckpt':
        torch.save(weights, path)
        cfg.model.teacher_ckpt = str(path)
    elif case == 'load_from':
        torch.save(prefixed('teacher.', weights), path)
        cfg.load_from = str(path)
    elif case == 'trainable':
        cfg.model.teacher_trainable = True
    runner = Runner.from_cfg(cfg)
    if case == 'loaded module':
        # As mmengine's hub marks what it gives out with its weights.
        runner.model.teacher.load_state_dict(weights)
        runner.model.teacher.is_init = True
    runner.train()
    assert capsys.readouterr().out.count(RANDOM) == int(warned)
    names = {
        "backbone's init_cfg": 'backbone.'
    }.get(case, '') if case not in ('trainable', 'nothing', 'wrong init_cfg',
                                    ) else 'none'
    for key, value in runner.model.teacher.state_dict().items():
        if key.startswith(names):
            assert torch.equal(value, weights[key]), key
