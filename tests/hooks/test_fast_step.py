"""FastStepHook: the same training, and where a lever must not be pulled."""
from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsld_plugin import compat
from wsld_plugin.checkpoints import read_checkpoint
from wsld_plugin.hooks import FastStepHook
from wsld_plugin.hooks.fast_teacher import _apart, use_channels_last
from wsld_plugin.hooks.fused_sgd import fuse_sgd
from wsld_plugin.hooks.host_memory import _why_not

FAST = dict(type='FastStepHook')
GLIBC = _why_not(os.environ) is None
FUSED = 'fused' in torch.optim.SGD([torch.zeros(1)], lr=1).param_groups[0]
PICTURES = torch.rand(
    8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Norm(Hook):
    """Statistics that folding cannot overlook, and a wider type."""

    def __init__(self, double: bool) -> None:
        self.double = double

    def before_run(self, runner: Runner) -> None:
        if self.double:
            runner.model.double()

    def before_train(self, runner: Runner) -> None:
        noise = torch.Generator().manual_seed(1)
        for module in runner.model.teacher.modules():
            if isinstance(module, _BatchNorm):
                for tensor in (module.running_var, module.weight.data):
                    tensor.copy_(
                        torch.rand(len(tensor), generator=noise) + 0.5)
                for tensor in (module.running_mean, module.bias.data):
                    tensor.copy_(
                        torch.rand(len(tensor), generator=noise) / 4)


class Watch(Hook):
    """Keeps the losses and how things stand in the midst of training."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.state: dict[str, Any] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(outputs['loss'].item())
        self.state = state(runner)


def state(runner: Runner) -> dict[str, Any]:
    """What the levers change, as far as it can be seen from outside."""
    model = runner.model
    return dict(
        student=not model.student.backbone.layer1[0].conv1.weight
        .is_contiguous(),
        teacher=not all(
            one.is_contiguous() for one in model.teacher.parameters()),
        forward='forward' in vars(model.teacher.backbone),
        loss='loss' in vars(model.teacher),
        fused=hasattr(runner.optim_wrapper, 'param_groups')
        and bool(runner.optim_wrapper.param_groups[0].get('fused')))


class Run:
    """One finished training."""

    def __init__(self, cfg: Config, hook: dict[str, Any] | None = None, *,
                 double: bool = False, validate: bool = False,
                 hooks: tuple[Hook, ...] = (), **fields: Any) -> None:
        Run.number += 1
        cfg = cfg.copy()
        cfg.merge_from_dict(fields)
        if not validate:
            cfg.update(NO_VALIDATION)
        cfg.experiment_name += f'_fast{Run.number}'
        cfg.log_level = 'INFO'
        cfg.work_dir = f'{cfg.work_dir}/{Run.number}'
        cfg.custom_hooks = [
            *cfg.custom_hooks, *([hook] if hook else [])
        ]
        compat.prepare_amp(cfg)
        self.cfg = cfg
        self.watch = Watch()
        self.runner = Runner.from_cfg(cfg)
        self.runner.register_hook(Norm(double), priority='VERY_HIGH')
        for one in (self.watch, *hooks):
            self.runner.register_hook(one, priority='LOWEST')

    number = 0

    def train(self) -> Run:
        self.at_first = {
            key: value.clone()
            for key, value in self.weights.items()
        }
        self.runner.train()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.runner.model.state_dict()

    @property
    def said(self) -> str:
        log, = Path(self.cfg.work_dir).glob('*/*.log')
        return '\n'.join(
            line for line in log.read_text().splitlines()
            if ' - FastStepHook: ' in line)

    @property
    def checkpoint(self) -> str:
        return str(Path(self.cfg.work_dir, 'epoch_1.pth'))


def plain_text(cfg: Config) -> str:
    return ''.join(f'{key} = {value!r}\n'
                   for key, value in cfg.to_dict().items())


@pytest.fixture
def config(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The tiny distillation, started many times and so without the frills."""
    # Laying out the config's text takes longer than the training.
    monkeypatch.setattr(Config, 'pretty_text', property(plain_text))
    tiny_config.model.teacher_norm_eval = True
    tiny_config.train_dataloader.dataset.serialize_data = False
    tiny_config.val_dataloader.update(num_workers=0)
    tiny_config.val_dataloader.dataset.serialize_data = False
    return tiny_config


NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


@pytest.fixture
def stock_loss(config: Config, seen: list[float]) -> float:
    """First loss of the config without the hook."""
    if not seen:
        seen.append(Run(config).train().watch.losses[0])
    return seen[0]


@pytest.fixture(scope='module')
def seen() -> list[float]:
    return []


def off_by(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of two states relative to each tensor's size."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[key].double() - one.double()).abs().max() /
              one.double().abs().max().clamp_min(1e-3))
        for key, one in theirs.items() if one.numel())


def test_the_first_loss_is_the_same(config: Config,
                                    stock_loss: float) -> None:
    fast = Run(config, FAST)
    before = state(fast.runner)
    assert not any(before.values())
    fast.train()
    assert fast.watch.losses[0] == pytest.approx(stock_loss, rel=1e-6)
    assert fast.watch.state == dict(
        student=True, teacher=False, forward=True, loss=True, fused=False)
    assert "the CPU's fused SGD copies gradients" in fast.said
    assert state(fast.runner) == before
    info, = fast.said.splitlines()
    apart = re.search(r'folded .* off by up to (\S+) of', info)
    assert apart and 0 < float(apart[1]) < 1e-4


def test_twenty_steps_end_the_same(config: Config) -> None:
    # Small steps, so that rounding is not what grows. The last batch is
    # smaller.
    config.optim_wrapper.optimizer.lr = 0.002
    config.train_dataloader.dataset.indices = 8 * 20 - 3
    slow = Run(config, double=True).train()
    fast = Run(config, FAST, double=True).train()
    assert len(fast.watch.losses) == 20
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-13)
    assert fast.watch.losses == pytest.approx(slow.watch.losses, rel=1e-7)
    assert off_by(fast.weights, slow.weights) < 1e-5
    assert off_by(fast.weights, fast.at_first) > 1e-2


@pytest.mark.parametrize('lever, what', [
    ('channels_last', 'student'),
    ('fold_teacher', 'forward'),
    ('teacher_outputs_only', 'loss'),
    ('fused_optimizer', 'fused'),
    ('keep_memory', 'memory'),
])
def test_each_lever_is_its_own(config: Config, stock_loss: float, lever: str,
                               what: str) -> None:
    all_off = dict(
        channels_last=False,
        fold_teacher=False,
        teacher_outputs_only=False,
        fused_optimizer=False,
        keep_memory=False)
    run = Run(config, {**FAST, **all_off, lever: True}).train()
    expected = dict.fromkeys(run.watch.state, False)
    # Where it is laid out, that waits for the first step.
    expected['forward'] = lever in ('channels_last', 'fold_teacher')
    if what in expected:
        expected[what] = FUSED if what == 'fused' else True
    # With no copy, the original is laid out.
    expected['teacher'] = lever == 'channels_last'
    assert run.watch.state == expected
    assert ('folded' in run.said) == (lever == 'fold_teacher')
    assert ('freed memory' in run.said) == (lever == 'keep_memory')
    assert run.watch.losses[0] == pytest.approx(stock_loss, rel=1e-6)


def test_files_are_as_without_it(config: Config) -> None:
    config.custom_hooks.append(dict(type='EMAHook'))
    files = [
        read_checkpoint(Run(config, hook).train().checkpoint)
        for hook in (None, FAST)
    ]
    slow, fast = files
    for part in ('state_dict', 'ema_state_dict'):
        assert [*fast[part]] == [*slow[part]]
        for key, value in slow[part].items():
            assert fast[part][key].shape == value.shape
            assert fast[part][key].dtype == value.dtype
            assert fast[part][key].stride() == value.stride(), key
    assert (fast['optimizer']['param_groups'] ==
            slow['optimizer']['param_groups'])
    moments = slow['optimizer']['state']
    assert fast['optimizer']['state'].keys() == moments.keys()
    for key, one in moments.items():
        assert (fast['optimizer']['state'][key]['momentum_buffer'].stride() ==
                one['momentum_buffer'].stride())


def test_levers_may_change_at_a_resume(config: Config) -> None:
    config.train_cfg.max_epochs = 2
    plain = Run(config, double=True).train()
    first = Run(config, FAST, double=True).train()
    assert off_by(first.weights, plain.weights) < 1e-9
    for before, hook in [(first, None), (plain, FAST),
                         (plain, {**FAST, 'channels_last': False})]:
        after = Run(
            config,
            hook,
            double=True,
            resume=True,
            load_from=before.checkpoint).train()
        assert len(after.watch.losses) == 3
        assert off_by(after.weights, plain.weights) < 1e-9


def test_bfloat16_says_by_how_much(config: Config,
                                   stock_loss: float) -> None:
    fast = Run(config, dict(FAST, teacher_dtype='bfloat16')).train()
    apart = re.search(r'in bfloat16 off by up to ([\d.]+e-\d+)', fast.said)
    assert apart and 1e-3 < float(apart[1]) < 0.3
    assert fast.watch.losses[0] == pytest.approx(stock_loss, rel=1e-2)
    assert fast.watch.losses[0] != pytest.approx(stock_loss, rel=1e-6)


def test_with_mixed_precision(config: Config) -> None:
    amp = dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16'))
    slow = Run(config, **amp).train()
    for dtype in (None, 'bfloat16'):
        fast = Run(config, dict(FAST, teacher_dtype=dtype), **amp).train()
        assert fast.watch.state['forward']
        assert fast.watch.losses == pytest.approx(
            slow.watch.losses, rel=2e-2)


@MODELS.register_module()
class OddBackbone(nn.Module):
    """Normalises before it convolves but is written the other way round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4)
        self.block = nn.Sequential()
        self.block.conv = nn.Conv2d(16, width, 3)
        self.block.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.relu(self.block.norm(self.stem(x)))
        return (self.relu(self.block.conv(x)), )


@MODELS.register_module()
class UntraceableBackbone(OddBackbone):
    """The same, and its calls cannot be followed."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if len(x) == 0:
            raise ValueError('nothing to see')
        return super().forward(x)


def test_what_is_followed_is_folded_rightly(config: Config) -> None:
    config.model.teacher.backbone = dict(
        type='OddBackbone', _scope_='mmengine', width=8)
    config.model.teacher.head.in_channels = 8
    slow, fast = Run(config).train(), Run(config, FAST).train()
    assert 'teacher: folded' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-6)


def test_what_comes_after_another_block_is_folded_too(config: Config) -> None:
    # Pre-activation: in each of three blocks the second BatchNorm follows a
    # convolution; the others follow sums, or what a sum needs, too.
    config.model.teacher.backbone = dict(
        type='WideResNet', depth=10, widen_factor=1)
    config.model.teacher.head.in_channels = 64
    fast = Run(config, FAST).train()
    assert 'teacher: folded 3 of 7 BatchNorms' in fast.said


@pytest.mark.parametrize('width, said', [(16, 'folded copy of the teacher'),
                                         (8, 'cannot be folded')])
def test_what_folds_wrongly_is_not_folded(config: Config, width: int,
                                          said: str) -> None:
    config.model.teacher.backbone = dict(
        type='UntraceableBackbone', _scope_='mmengine', width=width)
    config.model.teacher.head.in_channels = width
    slow, fast = Run(config).train(), Run(config, FAST).train()
    assert said in fast.said
    assert 'teacher: copied' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-6)


@MODELS.register_module()
class AssertingBackbone(OddBackbone):
    """Its code checks what torch.fx hands to it."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert isinstance(x, Tensor)
        return super().forward(x)


@MODELS.register_module()
class OptionalBackbone(OddBackbone):
    """Takes an argument that torch.fx takes for given."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        return super().forward(x if mask is None else x * mask)


@pytest.mark.parametrize('kind', ['AssertingBackbone', 'OptionalBackbone'])
def test_what_cannot_be_traced_is_copied(config: Config, kind: str) -> None:
    config.model.teacher.backbone = dict(
        type=kind, _scope_='mmengine', width=16)
    config.model.teacher.head.in_channels = 16
    slow, fast = Run(config).train(), Run(config, FAST).train()
    assert 'teacher: copied' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-6)


@MODELS.register_module()
class MixingBackbone(OddBackbone):
    """Convolves with weights that it makes, in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x, = super().forward(x)
        kernel = torch.ones(16, 16, 1, 1) / 16
        return (nn.functional.conv2d(x, kernel), )


def test_what_is_no_lower_precision_gets_autocast(config: Config) -> None:
    config.model.teacher.backbone = dict(
        type='MixingBackbone', _scope_='mmengine', width=16)
    config.model.teacher.head.in_channels = 16
    slow = Run(config).train()
    # torch.fx would make a weight of what it makes.
    fast = Run(config, dict(
        FAST, teacher_dtype='bfloat16', fold_teacher=False)).train()
    assert 'under autocast in bfloat16 off by up to' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-2)


@MODELS.register_module()
class SyncedBackbone(OddBackbone):
    """Its BatchNorm is as mmengine's `sync_bn='torch'` leaves it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.block.norm = nn.SyncBatchNorm(16)


def test_synchronised_batchnorm_is_folded_too(config: Config) -> None:
    config.model.teacher.backbone = dict(
        type='SyncedBackbone', _scope_='mmengine', width=16)
    config.model.teacher.head.in_channels = 16
    fast = Run(config, FAST).train()
    assert 'teacher: folded 1 of 1 BatchNorms' in fast.said


@MODELS.register_module()
class CarefulBackbone(OddBackbone):
    """Notes whether TF32 is allowed where it is run."""

    seen: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return super().forward(x)


def test_copies_are_compared_without_tf32(config: Config) -> None:
    config.model.teacher.backbone = dict(
        type='CarefulBackbone', _scope_='mmengine', width=16)
    config.model.teacher.head.in_channels = 16
    CarefulBackbone.seen.clear()
    assert torch.backends.cudnn.allow_tf32
    Run(config, FAST).train()
    assert False in CarefulBackbone.seen
    assert torch.backends.cudnn.allow_tf32


def test_a_nan_in_any_output_shows() -> None:
    good, bad = torch.randn(3), torch.full((3, ), math.nan)
    for ours in ((bad, good), (good, bad)):
        assert math.isnan(_apart(ours, (good, good)))
    assert _apart((good, good), (good, good)) == 0


@MODELS.register_module()
class FlatBackbone(OddBackbone):
    """Flattens as no tensor with its channels last can be flattened."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x, = super().forward(x)
        return (x.view(len(x), -1)[:, :16, None, None], )


def test_what_needs_its_layout_keeps_it(config: Config) -> None:
    config.model.teacher.backbone = dict(
        type='FlatBackbone', _scope_='mmengine', width=16)
    config.model.teacher.head.in_channels = 16
    fast = Run(config, FAST).train()
    assert 'the copy of the teacher fails: view size' in fast.said
    assert fast.watch.losses == pytest.approx(
        Run(config).train().watch.losses, rel=1e-4)


def test_a_compiled_step_is_not_tampered_with(config: Config,
                                              stock_loss: float) -> None:
    if not hasattr(torch, 'compile'):
        pytest.skip('this torch compiles nothing')
    fast = Run(config, FAST, compile=dict(disable=True)).train()
    assert 'cfg.compile compiles the whole step' in fast.said
    assert fast.watch.state['teacher'] and not fast.watch.state['forward']
    assert fast.watch.losses[0] == pytest.approx(stock_loss, rel=1e-6)


def test_who_looks_inside_sees_the_original(config: Config) -> None:
    config.model.distiller.teacher_recorders.inner = dict(
        type='ModuleOutputs', source='backbone.layer4')
    fast = Run(config, dict(FAST, teacher_dtype='bfloat16')).train()
    recorder = fast.runner.model.distiller.teacher_recorders.get_recorder(
        'inner')
    seen, = recorder.data_buffer
    assert seen.dtype == torch.float32
    assert 'not copied: a recorder' in fast.said
    assert 'teacher_dtype is without effect' in fast.said
    assert fast.watch.state['teacher']


@pytest.mark.parametrize('recorder, said', [
    (dict(type='ModuleInputs', source='head.loss_module'),
     'loss computed: recorder'),
    (dict(type='MethodOutputs',
          source='mmpretrain.models.heads.cls_head.ClsHead.loss'),
     'is a MethodOutputsRecorder'),
])
def test_who_reads_the_loss_gets_it(config: Config, recorder: dict[str, str],
                                    said: str) -> None:
    config.model.distiller.teacher_recorders.more = recorder
    fast = Run(config, FAST).train()
    assert not fast.watch.state['loss']
    assert said in fast.said
    recorders = fast.runner.model.distiller.teacher_recorders
    assert len(recorders.get_recorder('more').data_buffer) == 1


def test_statistics_of_the_teacher_go_on_moving(config: Config) -> None:
    config.model.teacher_norm_eval = False
    slow, fast, low = (
        Run(config, hook).train()
        for hook in (None, FAST, dict(FAST, teacher_dtype='bfloat16')))
    assert 'not copied: its BatchNorm is in training mode' in fast.said
    assert fast.watch.state['loss'] and fast.watch.state['teacher']
    assert re.search(r'autocast in bfloat16, outputs off by .*e-0[123] of',
                     low.said)
    for run, allowed in ((fast, 1e-4), (low, 0.1)):
        assert run.weights['teacher.backbone.bn1.num_batches_tracked'] == 3
        assert off_by(*({
            key: value
            for key, value in one.weights.items()
            if 'running_var' in key and key.startswith('teacher')
        } for one in (run, slow))) < allowed


def test_dropout_of_a_teacher_stays_and_draws_the_same(
        config: Config) -> None:
    config.custom_hooks = []  # No FrozenTeacherHook.
    slow = Run(config, double=True).train()
    fast = Run(config, FAST, double=True).train()
    assert 'folded' in fast.said
    assert fast.watch.losses == pytest.approx(slow.watch.losses, rel=1e-9)


KEEPING = """
import resource
from contextlib import ExitStack
from pathlib import Path
import torch
from wsld_plugin.hooks.host_memory import keep_freed_memory

def pages():
    'New ones for 96 MB that were freed before, in the best of five times.'
    numbers = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [torch.ones(6 * 2**20) for _ in range(4)]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        numbers.append(after - before)
    return min(numbers)

def megabytes():
    resident = int(Path('/proc/self/statm').read_text().split()[1])
    return resident * resource.getpagesize() // 2**20

with ExitStack() as undo:
    assert keep_freed_memory(undo) is None
    print(pages())
    print(megabytes())
print(megabytes())
"""


@pytest.mark.skipif(not GLIBC, reason='needs glibc and its own settings')
def test_kept_memory_needs_no_new_pages_and_is_given_back() -> None:
    done = subprocess.run([sys.executable, '-c', KEEPING],
                          check=True,
                          capture_output=True,
                          text=True)
    pages, during, after = map(int, done.stdout.split())
    # 48 if the system's pages have 2 MB, and 24,576 if they have 4 kB.
    assert pages < 20
    assert after < during - 80


@pytest.mark.parametrize('environment, why', [
    ({}, None),
    ({'MALLOC_ARENA_MAX': '1', 'LD_PRELOAD': 'libgomp.so'}, None),
    ({'MALLOC_TRIM_THRESHOLD_': '0'}, 'MALLOC_TRIM_THRESHOLD_ is set'),
    ({'LD_PRELOAD': '/usr/lib/libjemalloc.so.2'},
     'LD_PRELOAD is /usr/lib/libjemalloc.so.2'),
    ({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'},
     'GLIBC_TUNABLES is glibc.malloc.hugetlb=1'),
])
def test_memory_that_others_see_to_is_left_alone(
        monkeypatch: pytest.MonkeyPatch, environment: dict[str, str],
        why: str | None) -> None:
    monkeypatch.setattr('platform.libc_ver', lambda: ('glibc', '2.36'))
    assert _why_not(environment) == why
    monkeypatch.setattr('platform.libc_ver', lambda: ('', ''))
    assert _why_not(environment) == 'the C library is not glibc'


class Fail(Hook):

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         **kwargs: Any) -> None:
        if batch_idx == 1:
            raise KeyboardInterrupt


def test_a_failed_training_leaves_the_model_whole(config: Config) -> None:
    run = Run(config, FAST, hooks=(Fail(), ))
    before = [*run.runner.model.teacher.parameters()]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.watch.state['forward']
    assert not any(state(run.runner).values())
    for one, other in zip(before, run.runner.model.teacher.parameters()):
        assert one is other
    assert all(one.is_contiguous() for one in run.runner.model.parameters())


class Compare(Hook):
    """The teacher in validation against one that never was replaced."""

    equal: bool | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        runner.model.train()
        self.compare(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        runner.model.eval()
        self.compare(runner)

    def compare(self, runner: Runner) -> None:
        backbone = runner.model.teacher.backbone
        with torch.no_grad():
            ours, = backbone(PICTURES)
            theirs, = type(backbone).forward(backbone, PICTURES)
        self.equal = torch.equal(ours, theirs)
        assert self.equal != runner.model.training


def test_validation_sees_the_original(config: Config) -> None:
    compare, plain = Compare(), Run(config, validate=True).train()
    dtype = dict(FAST, teacher_dtype='bfloat16')
    fast = Run(config, dtype, validate=True, hooks=(compare, )).train()
    assert compare.equal is True
    metrics = [
        one.runner.message_hub.get_info('teacher_metrics')
        for one in (fast, plain)
    ]
    assert metrics[0] and metrics[0] == metrics[1]


@pytest.fixture
def small(config: Config) -> Config:
    """A teacher that compiles in seconds, and a last batch of half size."""
    config.model.teacher.backbone = dict(
        type='OddBackbone', _scope_='mmengine', width=8)
    config.model.teacher.head.in_channels = 8
    config.train_dataloader.dataset.indices = 20
    return config


COMPILED = dict(FAST, compile_teacher=True, fold_teacher=False)


def test_compiled_or_told_why_not(small: Config) -> None:
    if not hasattr(torch, 'compile'):
        assert 'has no torch.compile' in Run(small, COMPILED).train().said
        return
    torch.compiler.reset()
    slow, fast = Run(small).train(), Run(small, COMPILED).train()
    assert 'compiled off by up to' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        slow.watch.losses[0], rel=1e-5)
    backbone = fast.runner.model.teacher.backbone
    assert 'forward' not in vars(backbone)


@pytest.mark.skipif(
    not hasattr(torch, 'compile'), reason='this torch compiles nothing')
def test_no_compiler_no_failure(small: Config, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'cache'))
    torch.compiler.reset()
    with inductor.patch({'cpp.cxx': ('no-such-compiler', )}):
        fast = Run(small, COMPILED).train()
    assert 'the teacher runs uncompiled: ' in fast.said
    assert 'teacher not compiled' in fast.said
    assert fast.watch.losses[0] == pytest.approx(
        Run(small).train().watch.losses[0], rel=1e-6)


def test_wrong_types_are_refused(config: Config) -> None:
    with pytest.raises(ValueError, match="teacher_dtype is 'half', expected"):
        FastStepHook(teacher_dtype='half')
    with pytest.raises(ValueError, match=r"'float16', but .* on the CPU"):
        Run(config, dict(FAST, teacher_dtype='float16')).train()


def test_only_flat_weights_are_laid_out() -> None:
    network = nn.Sequential(
        nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv1d(2, 2, 3),
        nn.Linear(2, 2))
    undo = ExitStack()
    use_channels_last(network.parameters(), undo)
    assert [one.is_contiguous() for one in network.parameters()
            ] == [True, True, False, *[True] * 5]
    undo.close()
    assert all(one.is_contiguous() for one in network.parameters())


needs_fused = pytest.mark.skipif(not FUSED, reason='no fused SGD')


def two_weights() -> tuple[nn.Parameter, nn.Parameter]:
    noise = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        nn.Parameter(torch.randn(2, 3, 2, 2, generator=noise).double())
        for _ in range(2))


def descend(fuse: bool, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Three steps; the second weight joins at the second."""
    weights = two_weights()
    for weight in weights:
        use_channels_last([weight])
    optimizer = torch.optim.SGD(
        weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    # As from a file that was written without channels_last.
    optimizer.state[weights[0]]['momentum_buffer'] = torch.arange(
        24.).double().reshape(2, 3, 2, 2)
    if fuse:
        assert fuse_sgd(optimizer, ExitStack()) is None
    for step in range(3):
        for weight in weights[:1 + bool(step)]:
            weight.grad = change(weight.detach()**2)
        optimizer.step()
        assert len(optimizer.state) == 1 + bool(step)
    return [weight.detach() for weight in weights]


@needs_fused
@pytest.mark.parametrize('change', [torch.Tensor.clone,
                                    torch.Tensor.contiguous])
def test_fused_steps_are_plain_steps(
        change: Callable[[Tensor], Tensor]) -> None:
    for ours, theirs in zip(descend(True, change), descend(False, change)):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


@needs_fused
def test_a_skipped_first_step_leaves_no_garbage() -> None:
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('this torch scales gradients on GPUs only')
    ends = []
    for fuse in (True, False):
        weight, _ = two_weights()
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        if fuse:
            assert fuse_sgd(optimizer, ExitStack()) is None
        scaler = torch.amp.GradScaler('cpu', init_scale=8.)
        for factor in (float('inf'), 1., 1.):
            optimizer.zero_grad()
            scaler.scale((weight * factor).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
    assert not torch.equal(ends[0], two_weights()[0])


@pytest.mark.parametrize('fields', [
    dict(momentum=0.9, dampening=0.1), dict(foreach=True)])
def test_other_sgd_is_left_alone(fields: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD(two_weights(), lr=0.1, **fields)
    assert 'exclude' in (fuse_sgd(optimizer, ExitStack()) or '')
    assert not optimizer.param_groups[0].get('fused')


@needs_fused
def test_every_optimizer_of_several() -> None:
    first, second = two_weights()
    sgd = torch.optim.SGD([first], lr=0.1)
    adam = torch.optim.AdamW([second], lr=0.1)
    wrapper = OptimWrapperDict(a=OptimWrapper(sgd), b=OptimWrapper(adam))
    model = nn.Conv2d(1, 1, 1)
    hook = FastStepHook()
    hook.before_train(
        SimpleNamespace(model=model, cfg={}, optim_wrapper=wrapper))
    assert sgd.param_groups[0]['fused'] is True
    assert not adam.param_groups[0]['fused']
    checkpoint = dict(state_dict={}, optimizer=wrapper.state_dict())
    hook.before_save_checkpoint(None, checkpoint)
    assert not checkpoint['optimizer']['a']['param_groups'][0]['fused']
    assert sgd.param_groups[0]['fused'] is True
    hook.after_train(None)
    assert not sgd.param_groups[0]['fused']


TWO_PROCESSES = '''
import sys
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
sys.path.insert(0, sys.argv[2])
from tiny_training import config
from wsld_plugin import compat
from wsld_plugin.hooks import FastStepHook

# Laying out the text takes longer than the training.
Config.pretty_text = ''

class Double(Hook):
    def before_run(self, runner):
        runner.model.double()

ends = []
for number, (hooks, view) in enumerate([
        ([], False), ([dict(type='FastStepHook')], False),
        ([dict(type='FastStepHook')], True)]):
    cfg = config(f'{sys.argv[1]}/{number}')
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.experiment_name = str(number)
    cfg.custom_hooks = [*hooks, dict(type='SyncBuffersHook')]
    cfg.launcher = 'pytorch'
    compat.prepare_distributed(cfg)
    cfg.model_wrapper_cfg.gradient_as_bucket_view = view
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Double(), priority='VERY_HIGH')
    runner.train()
    ends.append(runner.model.state_dict())
for end in ends[1:]:
    off = max(float((one - other).abs().max())
              for one, other in zip(end.values(), ends[0].values()))
    sys.stdout.write(f'rank {runner.rank} off by {off}\\n')
'''


def test_two_processes_train_the_same_model(tmp_path: Path) -> None:
    program = tmp_path / 'train.py'
    program.write_text(TWO_PROCESSES)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [
            sys.executable, '-m', 'torch.distributed.run',
            '--nproc_per_node=2', f'--master_port={port}',
            str(program),
            str(tmp_path),
            str(Path(__file__).parents[1] / 'compat')
        ],
        capture_output=True,
        text=True,
        check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    apart = re.findall(r'rank \d off by (\S+)', done.stdout)
    assert len(apart) == 4
    assert max(map(float, apart)) < 1e-9
    assert done.stderr.count('Grad strides do not match bucket view') <= 4
