"""ValidateTeacherHook: what it reports, and what it leaves alone."""
from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

Trained = Callable[..., Runner]


def own_accuracy(cfg: Config, path: Path) -> float:
    """Save a random teacher; its top-1 on the validation scans, in percent."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher).eval()
        loader = Runner.build_dataloader(cfg.val_dataloader)
    torch.save(dict(state_dict=teacher.state_dict()), path)
    right = []
    for batch in loader:
        data = teacher.data_preprocessor(batch)
        with torch.no_grad():
            guess = teacher(data['inputs']).argmax(1)
        label = torch.cat([one.gt_label for one in data['data_samples']])
        right.append(guess == label)
    return 100 * torch.cat(right).double().mean().item()


def test_metrics_are_the_teachers(tiny_config: Config, trained: Trained,
                                  tmp_path: Path) -> None:
    right = own_accuracy(tiny_config, tmp_path / 'teacher.pth')
    tiny_config.model.teacher_ckpt = str(tmp_path / 'teacher.pth')
    runner = trained(tiny_config)
    metrics = runner.message_hub.get_info('teacher_metrics')
    assert metrics == {
        'teacher/accuracy/top1': pytest.approx(right, abs=1e-4)
    }
    scalars, = tmp_path.glob('*/vis_data/scalars.json')
    first, *others = map(json.loads, scalars.read_text().splitlines())
    assert first == {**metrics, 'step': 0}
    assert 'accuracy/top1' in others[-1]
    assert not any(key.startswith('teacher') for key in others[-1])


def test_training_goes_on_as_without_it(
        tiny_config: Config, trained: Trained,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine with GPUs that this process has no use for: asking them
    # for their random state is slow, and here it fails.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    # Without the seeds that each epoch gets, one random number drawn more
    # would show.
    del tiny_config.default_hooks['epoch_seed']
    ends = []
    for hooks in (['FrozenTeacherHook', 'ValidateTeacherHook'],
                  ['FrozenTeacherHook']):
        cfg = deepcopy(tiny_config)
        for name in ('frozen_teacher', 'validate_teacher'):
            cfg.default_hooks.pop(name, None)
        cfg.custom_hooks = [dict(type=hook) for hook in hooks]
        cfg.experiment_name += str(len(hooks))
        ends.append(trained(cfg).model.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_no_validation_no_teacher_metrics(tiny_config: Config,
                                          trained: Trained) -> None:
    tiny_config.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    runner = trained(tiny_config)
    assert runner.message_hub.get_info('teacher_metrics') is None
