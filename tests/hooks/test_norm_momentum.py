"""NormMomentumHook: what it raises, and what it leaves alone."""
from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules()
            if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize('momentum, limit, expected', [
    # Three steps, then more of a training that nobody waits for.
    (0.001, 3, 0.1), (0.2, 3, 0.2), (None, 3, None), (0.001, 1000, 0.05),
    (0.001, 10**6, 0.001)])
def test_momentum(momentum: float | None, limit: int, expected: float | None,
                  tiny_config: Config) -> None:
    tiny_config.custom_hooks = [dict(type='NormMomentumHook')]
    if limit != 3:
        tiny_config.train_cfg = dict(
            by_epoch=False, max_iters=limit, val_interval=limit)
    runner = Runner.from_cfg(tiny_config)
    for norm in norms(runner.model):
        norm.momentum = momentum
    if limit == 3:
        runner.train()
    else:
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.call_hook('before_train')
    assert {norm.momentum for norm in norms(runner.model.teacher)} == {
        momentum}
    assert {norm.momentum for norm in norms(runner.model.architecture)} == {
        expected}
