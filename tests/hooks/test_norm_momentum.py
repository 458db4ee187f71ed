"""NormMomentumHook: statistics that keep up, and what it leaves alone."""
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.models.backbones import ResNet
from torch import nn


@MODELS.register_module()
class SlowResNet(ResNet):
    """With the momentum of a network for very long trainings."""

    def __init__(self, momentum: float | None = 0.001, **fields) -> None:
        super().__init__(**fields)
        for norm in norms(self):
            norm.momentum = momentum


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (part for part in network.modules()
            if isinstance(part, nn.BatchNorm2d))


@pytest.mark.parametrize('momentum, limit, expected', [
    # Three steps, then more of a training that nobody waits for.
    (0.001, 3, 0.1), (0.2, 3, 0.2), (None, 3, None), (0.001, 1000, 0.05),
    (0.001, 10**6, 0.001)])
def test_momentum(momentum: float | None, limit: int, expected: float | None,
                  tiny_config: Config,
                  trained: Callable[..., Runner]) -> None:
    model = tiny_config.model
    for network in (model.architecture, model.teacher):
        network.backbone.update(
            type='SlowResNet', _scope_='mmengine', momentum=momentum)
    tiny_config.default_hooks.norm_momentum = dict(type='NormMomentumHook')
    if limit != 3:
        tiny_config.train_cfg = dict(
            by_epoch=False, max_iters=limit, val_interval=limit)
        runner = Runner.from_cfg(tiny_config)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.call_hook('before_train')
    else:
        runner = trained(tiny_config)
    assert {norm.momentum for norm in norms(runner.model.teacher)} == {
        momentum}
    assert {norm.momentum for norm in norms(runner.model.architecture)} == {
        expected}


def test_statistics_of_a_short_training_are_those_of_its_pictures(
        tiny_config: Config, trained: Callable[..., Runner]) -> None:
    tiny_config.train_dataloader.dataset.indices = 480
    tiny_config.model.architecture.backbone.update(
        type='SlowResNet', _scope_='mmengine')
    # So that the pictures alone move the statistics.
    tiny_config.optim_wrapper.optimizer.lr = 0.0

    def distance() -> float:
        model = trained(tiny_config).model.architecture
        first = next(norms(model))
        found: list[torch.Tensor] = []
        first.register_forward_pre_hook(
            lambda part, inputs: found.append(inputs[0]))
        loader = Runner.build_dataloader(tiny_config.train_dataloader)
        with torch.no_grad():
            for batch in loader:
                model.eval()(**model.data_preprocessor(batch))
        true = torch.cat(found).var((0, 2, 3))
        return (first.running_var / true).log().abs().max().item()

    assert distance() > 1
    tiny_config.default_hooks.norm_momentum = dict(type='NormMomentumHook')
    # But for the noise of batches of eight.
    assert distance() < 0.4
