"""ValidateTeacherHook: what it reports, refuses and leaves alone."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from wsld_plugin.checkpoints import CheckpointMismatchError

Trained = Callable[..., Runner]


def build_teacher(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model.teacher)


def save_teacher(cfg: Config, path: Path) -> dict[str, Tensor]:
    """Write a random teacher's weights and name them in the config."""
    weights = build_teacher(cfg).state_dict()
    torch.save(dict(state_dict=weights), path)
    cfg.model.teacher_ckpt = str(path)
    return weights


def own_accuracy(cfg: Config, weights: dict[str, Tensor]) -> float:
    """Top-1 accuracy of the teacher on the validation scans, in percent."""
    teacher = build_teacher(cfg)
    teacher.load_state_dict(weights)
    teacher.eval()
    right = []
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(cfg.val_dataloader)
    for batch in loader:
        data = teacher.data_preprocessor(batch)
        with torch.no_grad():
            guess = teacher(data['inputs']).argmax(1)
        label = torch.cat([one.gt_label for one in data['data_samples']])
        right.append(guess == label)
    return 100 * torch.cat(right).double().mean().item()


def test_metrics_are_the_teachers(tiny_config: Config, trained: Trained,
                                  tmp_path: Path) -> None:
    weights = save_teacher(tiny_config, tmp_path / 'teacher.pth')
    runner = trained(tiny_config)
    metrics = runner.message_hub.get_info('teacher_metrics')
    assert metrics == {
        'teacher/accuracy/top1':
        pytest.approx(own_accuracy(tiny_config, weights), abs=1e-4)
    }
    scalars, = tmp_path.glob('*/vis_data/scalars.json')
    first, *others = map(json.loads, scalars.read_text().splitlines())
    assert first == {**metrics, 'step': 0}
    assert 'accuracy/top1' in others[-1]
    assert not any(key.startswith('teacher') for key in others[-1])


def test_training_goes_on_as_without_it(tiny_config: Config,
                                        trained: Trained,
                                        tmp_path: Path) -> None:
    # Without the seeds that each epoch gets, one random number drawn more
    # would show.
    tiny_config.default_hooks.epoch_seed = None
    save_teacher(tiny_config, tmp_path / 'teacher.pth')
    ends = []
    for hooks in (['FrozenTeacherHook', 'ValidateTeacherHook'],
                  ['FrozenTeacherHook']):
        cfg = tiny_config.copy()
        cfg.custom_hooks = [dict(type=hook) for hook in hooks]
        cfg.default_hooks = {
            key: hook
            for key, hook in cfg.default_hooks.items() if hook
        }
        cfg.experiment_name += str(len(hooks))
        ends.append(trained(cfg).model.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_file_that_does_not_fit_is_refused(tiny_config: Config,
                                           tmp_path: Path) -> None:
    path = tmp_path / 'teacher.pth'
    weights = save_teacher(tiny_config, path)
    misfits = {
        'missing keys': {
            key: value
            for key, value in weights.items() if key != 'head.fc.bias'
        },
        'unexpected key': {
            **weights, 'backbone.layer3.6.conv1.weight': torch.zeros(1)
        },
        'size mismatch': {
            **weights, 'head.fc.bias': torch.zeros(11)
        },
        'architecture.backbone.conv1': {
            f'architecture.{key}': value
            for key, value in weights.items()
        },
    }
    for number, (complaint, misfit) in enumerate(misfits.items()):
        torch.save(dict(state_dict=misfit), path)
        tiny_config.experiment_name += str(number)
        with pytest.raises(CheckpointMismatchError, match=complaint) as error:
            Runner.from_cfg(tiny_config).train()
        assert f'model.teacher_ckpt={path}' in str(error.value)
        assert len(str(error.value)) < 1200


def test_no_validation_no_teacher_metrics(tiny_config: Config,
                                          trained: Trained) -> None:
    tiny_config.val_cfg = None
    tiny_config.val_dataloader = None
    tiny_config.val_evaluator = None
    runner = trained(tiny_config)
    assert runner.message_hub.get_info('teacher_metrics') is None


def test_random_teacher_is_mentioned(tiny_config: Config, trained: Trained,
                                     tmp_path: Path) -> None:
    trained(tiny_config)
    log, = tmp_path.glob('*/*.log')
    assert 'the teacher has random weights' in log.read_text()
