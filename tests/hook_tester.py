"""What every hook must pass: training in two processes stays what it was.

A table of trainings, wrapped and optimised in the ways that people do it,
run with and without a hook. Imported it compares; as a script it is one of
the two processes, which trains all that is asked for and writes every
gradient and weight.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import wsld_plugin

TINY = Path(__file__).parent / 'tools' / 'tiny_distillation.py'
Steps = list[dict[str, Tensor]]

# How the model is wrapped, and what else of the config differs.
CASES: dict[str, dict[str, Any]] = {
    'plain': {},
    'unused': dict(wrapper=dict(find_unused_parameters=True), unused=True),
    'bucket view': dict(wrapper=dict(gradient_as_bucket_view=True)),
    'unused, bucket view': dict(unused=True, wrapper=dict(
        find_unused_parameters=True, gradient_as_bucket_view=True)),
    'static graph': dict(wrapper=dict(static_graph=True)),
    'static graph, unused': dict(unused=True, wrapper=dict(
        static_graph=True, gradient_as_bucket_view=True)),
    'accumulation': dict(optim=dict(accumulative_counts=2)),
    'EMA': dict(hooks=[dict(type='EMAHook', momentum=0.1),
                       dict(type='SyncBuffersHook')]),
    'frozen stage': dict(frozen=1),
    'fused SGD': dict(optim={'optimizer.fused': True}),
}
FUSED = 'fused' in torch.optim.SGD([torch.zeros(1)], lr=1).param_groups[0]


@MODELS.register_module()
class TinyBackbone(nn.Module):
    """Convolutions and BatchNorm; one convolution may have no use."""

    def __init__(self, width: int, frozen: int = 0,
                 unused: bool = False) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 2 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(ins, outs, size, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outs), nn.ReLU())
            for ins, outs, size in zip(widths, widths[1:], (3, 5, 3)))
        self.frozen = frozen
        self.stages[:frozen].requires_grad_(False)
        if unused:
            self.unused = nn.Conv2d(4, 8, 3)

    def train(self, mode: bool = True) -> TinyBackbone:
        super().train(mode)
        self.stages[:self.frozen].eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for stage in self.stages:
            x = stage(x)
        return (x, )


def shake(network: nn.Module) -> None:
    """Statistics and scales that nothing can overlook."""
    noise = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for one in (module.running_var, module.weight.data,
                        module.running_mean, module.bias.data):
                one.copy_(torch.rand(len(one), generator=noise) + 0.5)


def make_config(folder: str, name: str, ours: list[dict[str, Any]], *,
                wrapper: dict[str, Any] | None = None,
                optim: dict[str, Any] | None = None,
                hooks: list[dict[str, Any]] | None = None,
                **backbone: Any) -> Config:
    """Two epochs of four steps, each process with 4 scans a step."""
    cfg = Config.fromfile(TINY)
    pipeline = [dict(type='Resize', scale=16), dict(type='PackInputs')]
    cfg.merge_from_dict({
        'work_dir': f'{folder}/{name}', 'experiment_name': name,
        'launcher': 'pytorch', 'log_level': 'ERROR',
        'model.teacher_ckpt': f'{folder}/teacher.pth',
        'model_wrapper_cfg': wrapper and dict(
            wrapper, broadcast_buffers=False),
        'train_cfg.max_epochs': 2,
        **{f'optim_wrapper.{key}': one for key, one in (optim or {}).items()}})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=4, num_workers=0)
        loader.dataset.update(indices=32, pipeline=pipeline)
    student, teacher = cfg.model.architecture, cfg.model.teacher
    student.train_cfg, cfg.param_scheduler = None, []
    for one, width in ((student, 4), (teacher, 8)):
        one.head.in_channels = 2 * width
        one.backbone = dict(
            type='TinyBackbone', _scope_='mmengine', width=width)
    student.backbone.update(backbone)
    # One that takes the place of a default one.
    checkpoint, = [hook for hook in ours
                   if hook['type'] == 'DistillCheckpointHook'] or [None]
    cfg.default_hooks = dict(checkpoint=checkpoint)
    cfg.custom_hooks = [*(hooks or []),
                        *(hook for hook in ours if hook is not checkpoint)]
    return cfg


@HOOKS.register_module()
class LateLayout(Hook):
    """A wrong hook: parameters change under a model that DDP has wrapped."""

    def before_train(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)


def train(cfg: Config) -> Steps:
    """Gradients of each optimizer step, and last the weights."""
    wsld_plugin.compat.prepare_distributed(cfg)
    runner = Runner.from_cfg(cfg)
    steps: Steps = []
    module = runner.model.module
    wrapper = runner.optim_wrapper = runner.build_optim_wrapper(
        runner.optim_wrapper)
    step = wrapper.step

    def recorded(**kwargs: Any) -> None:
        steps.append({name: parameter.grad.clone()
                      for name, parameter in module.named_parameters()
                      if parameter.grad is not None})
        step(**kwargs)

    wrapper.step = recorded
    runner.train()
    averages = [hook.ema_model for hook in runner.hooks
                if hasattr(hook, 'ema_model')]
    steps.append({
        f'{number}.{name}'[2 if number == 0 else 0:]: value.clone()
        for number, one in enumerate([module, *averages])
        for name, value in one.state_dict().items()
        if value.is_floating_point()})
    return steps


def off_by(ours: Steps, theirs: Steps) -> float:
    """Largest relative difference (L2) of two trainings' tensors."""
    worst = 0.
    if len(ours) != len(theirs):
        return float('inf')
    for one, other in zip(ours, theirs):
        if one.keys() != other.keys():
            return float('inf')
        # What is nothing but rounding is measured by all there is.
        floor = 1e-3 * max(float(value.norm()) for value in other.values())
        worst = max(worst, *(
            float((one[key] - value).norm()) / max(float(value.norm()), floor)
            for key, value in other.items()))
    return worst


def two_processes(folder: Path,
                  asked: list[tuple[str, str, list[dict[str, Any]]]]
                  ) -> list[dict[tuple[str, str], Steps]]:
    """Train with a list of hooks, of that name, in a case of that name.

    Returns:
        For each rank the trainings by names of list and case.
    """
    launch(__file__, folder, json.dumps(asked))
    return [torch.load(folder / f'rank{rank}.pth') for rank in '01']


def launch(*command: object) -> str:
    """What a script says that two processes run."""
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', *map(str, command)],
        capture_output=True, text=True, timeout=600, env=dict(
            os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='-1',
            PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]),
                                        *sys.path])))
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


def main() -> None:
    """Be one of the processes."""
    folder = sys.argv[1]
    torch.set_num_threads(1)
    wsld_plugin.compat.quiet()
    # Laying out the text and reading the scans take longer than training.
    Config.pretty_text = ''  # type: ignore[assignment]
    sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
    rank = os.environ['RANK']
    torch.manual_seed(0)
    teacher = MODELS.build(dict(make_config(folder, '', []).model.teacher,
                                _scope_='mmpretrain'))
    shake(teacher)
    if rank == '0':
        torch.save(teacher.state_dict(), f'{folder}/teacher.pth')
    trained = {}
    for name, case, ours in json.loads(sys.argv[2]):
        cfg = make_config(folder, f'{case}{name}'.replace(' ', ''), ours,
                          **CASES[case])
        trained[name, case] = train(cfg)
    torch.save(trained, f'{folder}/rank{rank}.pth')


if __name__ == '__main__':
    main()
