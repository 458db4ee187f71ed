"""FastStepHook: the same training, and what it must leave alone."""
from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hook_tester import FUSED, off_by, shake
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models.heads import LinearClsHead
from short_runs import again
from test_fast_teacher import PICTURES
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wsld_plugin.checkpoints import read_checkpoint
from wsld_plugin.hooks import FastStepHook
from wsld_plugin.hooks.fast_step import _use_channels_last
from wsld_plugin.models.networks import network

FAST = dict(type='FastStepHook')
LOW = dict(FAST, teacher_dtype='bfloat16')


def state(runner: Runner) -> list[bool]:
    """Whether layout, backbone and loss are changed."""
    model = runner.model
    return [
        not all(one.is_contiguous() for one in model.parameters()),
        'forward' in vars(model.teacher.backbone),
        'forward' in vars(model.teacher)]


class Run(Hook):
    """One training, its losses, and how things stand in the midst of it."""

    priority = 'VERY_HIGH'

    def __init__(self, cfg: Config, hook: dict[str, Any] | None = None, *,
                 double: bool = False, validate: bool = False,
                 fail: bool = False, **fields: Any) -> None:
        cfg = again(cfg, log_level='INFO', **fields)
        if not validate:
            cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
        cfg.work_dir += f'/{cfg.experiment_name}'
        cfg.custom_hooks += [hook] if hook else []
        self.double, self.fail, self.losses = double, fail, []
        self.runner = Runner.from_cfg(cfg)
        self.runner.register_hook(self)
        self.checkpoint = f'{cfg.work_dir}/epoch_1.pth'
        self.before = [*self.runner.model.parameters()]
        with pytest.raises(KeyboardInterrupt) if fail else ExitStack():
            self.runner.train()
        self.weights = [{
            key: value for key, value in self.runner.model.state_dict().items()
            if value.is_floating_point()}]
        log, = Path(cfg.work_dir).glob('*/*.log')
        self.said = ''.join(
            re.findall(' - FastStepHook: .*', log.read_text()))

    def before_run(self, runner: Runner) -> None:
        if self.double:
            runner.model.double()

    def before_train(self, runner: Runner) -> None:
        shake(runner.model.teacher)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(outputs['loss'].item())
        self.state = state(runner)
        if self.fail and batch_idx == 1:
            raise KeyboardInterrupt

    @torch.no_grad()
    def before_val_epoch(self, runner: Runner) -> None:
        runner.model.eval()
        backbone = runner.model.teacher.backbone
        self.original = torch.equal(
            backbone(PICTURES)[0],
            type(backbone).forward(backbone, PICTURES)[0])


@pytest.fixture
def config(tiny_config: Config) -> Config:
    tiny_config.model.teacher_norm_eval = True
    return tiny_config


def test_files_are_as_without_it(config: Config) -> None:
    config.custom_hooks.append(dict(type='EMAHook'))
    slow, fast = (
        read_checkpoint(Run(config, hook).checkpoint)
        for hook in (None, FAST))
    assert fast['state_dict']._metadata == slow['state_dict']._metadata
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        ours, theirs = (tree_map(lambda one: (one.dtype, one.stride())
                                 if isinstance(one, Tensor) else one,
                                 file[part]) for file in (fast, slow))
        assert ours == theirs


@pytest.mark.parametrize('fused', [False] + [True] * FUSED)
def test_it_may_come_and_go_at_a_resume(config: Config, fused: bool) -> None:
    config.train_cfg.max_epochs = 2
    # Small steps, so that rounding is not what grows.
    config.optim_wrapper.optimizer.lr = 0.002
    # The last batch is smaller.
    config.train_dataloader.dataset.indices = 8 * 3 - 3
    if fused:
        config.optim_wrapper.optimizer.fused = True
    plain = Run(config, double=True)
    first = Run(config, FAST, double=True)
    assert first.state == [True] * 3
    assert state(first.runner) == [False] * 3
    assert first.losses == pytest.approx(plain.losses, rel=1e-7)
    assert off_by(first.weights, plain.weights) < 1e-9
    assert re.search(r'folded: outputs off by up to \S+e-1\d of', first.said)
    for before, hook in [(first, None), (plain, FAST)]:
        after = Run(config, hook, double=True, resume=True,
                    load_from=before.checkpoint)
        assert len(after.losses) == 3
        assert off_by(after.weights, plain.weights) < 1e-9


@pytest.mark.parametrize('amp', [{}, dict(
    optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16'))])
def test_half_precision(config: Config, amp: dict[str, Any]) -> None:
    slow, fast, low = (Run(config, hook, validate=True, **amp)
                       for hook in (None, FAST, LOW))
    for one in (fast, low):
        assert one.losses == pytest.approx(slow.losses, rel=2e-2)
    apart = re.search(r'in bfloat16: outputs off by up to (\S+) of', low.said)
    assert apart and 1e-3 < float(apart[1]) < 0.3
    assert 'folded: ' in fast.said and 'bfloat16' not in fast.said
    assert low.state[1] and low.original
    ours, theirs = (one.runner.message_hub.get_info('teacher_metrics')
                    for one in (low, slow))
    assert ours and ours == theirs


@pytest.mark.parametrize('recorder, said', [
    (dict(type='ModuleOutputs', source='backbone.layer4'),
     'not copied: a recorder or hook looks into it'),
    (dict(type='ModuleInputs', source='head.loss_module'),
     'loss computed: recorders get something else without it'),
    (dict(type='MethodOutputs',
          source='mmpretrain.models.heads.cls_head.ClsHead.loss'),
     'left alone: not only its modules'),
])
def test_who_looks_inside_sees_the_original(config: Config, said: str,
                                            recorder: dict[str, str]) -> None:
    config.model.distiller.teacher_recorders.more = recorder
    fast = Run(config, LOW)
    assert said in fast.said
    seen, = fast.runner.model.distiller.teacher_recorders.get_recorder(
        'more').data_buffer
    assert not isinstance(seen, Tensor) or seen.dtype == torch.float32


class CountingHead(LinearClsHead):
    """Knows how often its loss was asked for; may see more in it."""

    computed, gain = 0, 1

    def loss(self, feats: Any, *args: Any, **kwargs: Any) -> Any:
        self.computed += 1
        return super().loss((feats[-1] * self.gain, ), *args, **kwargs)


@pytest.mark.parametrize('gain, computed', [(1, 1), (2, 3)])
def test_a_loss_is_computed_if_it_makes_a_difference(
        config: Config, gain: int, computed: int) -> None:
    config.model.teacher.head.type = CountingHead
    CountingHead.gain = gain
    slow, fast = (Run(config, hook) for hook in (None, FAST))
    assert fast.losses == pytest.approx(slow.losses, rel=1e-4)
    assert [one.runner.model.teacher.head.computed
            for one in (slow, fast)] == [3, computed]


def test_a_teacher_of_other_libraries_is_fast_too(config: Config) -> None:
    # Two members: both folded, and no loss computed.
    member = dict(network=network('resnet8', 'digits'), num_classes=10)
    config.model.teacher = dict(
        type='mmengine.Teacher', members=[member, dict(member, size=48)])
    slow, fast = (Run(config, hook) for hook in (None, FAST))
    assert fast.losses == pytest.approx(slow.losses, rel=1e-4)
    assert 'teacher folded' in fast.said
    assert "teacher's loss not computed" in fast.said


def test_statistics_of_the_teacher_go_on_moving(config: Config) -> None:
    config.model.teacher_norm_eval = False
    slow, fast = (Run(config, hook) for hook in (None, FAST))
    for what in ('not copied', "loss computed"):
        assert f'{what}: its BatchNorm is in training mode' in fast.said
    assert slow.losses[0] == pytest.approx(fast.losses[0])
    bn = fast.runner.model.teacher.backbone.bn1
    assert bn.num_batches_tracked == 3
    assert off_by(*([{
        key: value for key, value in one.weights[0].items()
        if key.startswith('teacher.') and 'running' in key
    }] for one in (fast, slow))) < 1e-4


@pytest.mark.skipif(not hasattr(torch, 'compile'), reason='no torch.compile')
def test_a_compiled_teacher_is_left_alone(config: Config) -> None:
    fast = Run(config, FAST, compile=dict(disable=True))
    assert 'left alone: cfg.compile' in fast.said
    assert fast.state == [True, False, False]


def test_a_failed_training_leaves_the_model_whole(config: Config) -> None:
    run = Run(config, FAST, fail=True)
    assert run.state == [True] * 3
    assert state(run.runner) == [False] * 3
    assert all(one is other for one, other in zip(
        run.before, run.runner.model.parameters()))
    assert all(one['momentum_buffer'].is_contiguous()
               for one in run.runner.optim_wrapper.optimizer.state.values())


class FlatBackbone(nn.Conv2d):
    """Flattens as no tensor with its channels last can be flattened."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x).view(len(x), -1)[:, :16, None, None], )


def test_view_is_told_the_switch(config: Config) -> None:
    config.model.architecture.backbone = dict(
        type=FlatBackbone, in_channels=3, out_channels=4, kernel_size=3)
    config.model.architecture.head.in_channels = 16
    with pytest.raises(RuntimeError, match='channels_last=False') as error:
        Run(config, FAST)
    assert 'view size is not compatible' in str(error.value.__cause__)
    slow, fast = (Run(config, hook)
                  for hook in (None, dict(FAST, channels_last=False)))
    assert fast.losses == pytest.approx(slow.losses, rel=1e-5)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher_dtype is 'half', expected"):
        FastStepHook(teacher_dtype='half')


def test_what_is_laid_out() -> None:
    network = nn.Sequential(
        nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv1d(2, 2, 3),
        nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    network[4].weight.data = network[3].weight.data
    optimizer = torch.optim.Adam(network.parameters())
    sum(one.square().sum() for one in network.parameters()).backward()
    optimizer.step()
    undo, weight = ExitStack(), network[1].weight
    _use_channels_last(network, [optimizer], undo)
    assert [one.weight.is_contiguous()
            for one in network] == [True, False, True, True, True]
    assert network[4].weight.data_ptr() == network[3].weight.data_ptr()
    moment = optimizer.state[weight]['exp_avg']
    assert weight.stride() == weight.grad.stride() == moment.stride()
    undo.close()
    assert all(one.is_contiguous() and one.grad.is_contiguous()
               for one in network.parameters())
