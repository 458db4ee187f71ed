"""ValidateTeacherHook: what it reports, and what it leaves alone."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_runs import again, check_equal
from mmengine.config import Config
from mmengine.runner import Runner

Trained = Callable[..., Runner]


def test_metrics_are_the_teachers(taught: Config, trained: Trained) -> None:
    alone = again(taught, load_from=taught.model.teacher_ckpt)
    alone.model = taught.model.teacher
    alone.default_hooks.checkpoint = None
    expected = {f'teacher/{key}': pytest.approx(value, abs=1e-4)
                for key, value in Runner.from_cfg(alone).val().items()}
    runner = trained(taught)
    metrics = runner.message_hub.get_info('teacher_metrics')
    assert metrics == expected
    scalars, = Path(taught.work_dir).glob(
        f'{runner.timestamp}/vis_data/scalars.json')
    first, *others = map(json.loads, scalars.read_text().splitlines())
    assert first == {**metrics, 'step': 0}
    assert 'accuracy/top1' in others[-1]
    assert not any(key.startswith('teacher') for key in others[-1])


@pytest.mark.parametrize('name', ['validate_teacher', 'wsld_monitor'])
def test_training_goes_on_as_without_it(
        name: str, tiny_config: Config, trained: Trained,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine with GPUs that this process has no use for: asking them
    # for their random state is slow, and here it fails.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    # Without the seeds that each epoch gets, one random number drawn more
    # would show.
    del tiny_config.default_hooks['epoch_seed']
    runs = [trained(again(tiny_config))]
    del tiny_config.default_hooks[name]
    runs.append(trained(again(tiny_config)))
    check_equal(*(dict(run.model.state_dict()) for run in runs))
    check_equal(*(run.message_hub.get_scalar('train/loss').data[0].tolist()
                  for run in runs))
    # It left something.
    said, silent = ({*run.message_hub.runtime_info,
                     *run.message_hub.log_scalars} for run in runs)
    assert said > silent
