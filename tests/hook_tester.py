"""What every hook must pass: training in two processes stays what it was.

A table of trainings, wrapped and optimised in the ways that people do it,
run with and without a hook. Imported it compares; as a script it is one of
the two processes, which trains all that is asked for and writes every
gradient and weight.
"""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

import wsld_plugin

Steps = list[dict[str, Tensor]]

# How the model is wrapped, and what else of the config differs.
CASES: dict[str, dict[str, Any]] = {
    'plain': {},
    'unused': dict(wrapper=dict(find_unused_parameters=True), unused=True),
    'bucket view': dict(wrapper=dict(gradient_as_bucket_view=True)),
    'unused, bucket view': dict(
        wrapper=dict(
            find_unused_parameters=True, gradient_as_bucket_view=True),
        unused=True),
    'static graph': dict(wrapper=dict(static_graph=True)),
    'static graph, unused': dict(
        wrapper=dict(static_graph=True, gradient_as_bucket_view=True),
        unused=True),
    'accumulation': dict(accumulate=2),
    'EMA': dict(hooks=[dict(type='EMAHook', momentum=0.1),
                       dict(type='SyncBuffersHook')]),
    'frozen stage': dict(frozen=1),
    'fused SGD': dict(optimizer=dict(fused=True)),
}


@DATASETS.register_module()
class Noise(Dataset):
    """Thirty-two pictures of 16x16 with labels 0 to 4."""

    metainfo: ClassVar = dict(classes=tuple('01234'))

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmpretrain.structures import DataSample
        noise = torch.Generator().manual_seed(index)
        return dict(
            inputs=torch.randint(256, (3, 16, 16), generator=noise).byte(),
            data_samples=DataSample().set_gt_label(index % 5))


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


def network(width: int, **fields: Any) -> dict[str, Any]:
    return dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        backbone=dict(
            type='TinyBackbone', _scope_='mmengine', width=width, **fields),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=5, in_channels=2 * width,
            topk=(1, )))


def make_config(folder: str, name: str, ours: list[dict[str, Any]], *,
                wrapper: dict[str, Any] | None = None, unused: bool = False,
                frozen: int = 0, accumulate: int = 1,
                optimizer: dict[str, Any] | None = None,
                hooks: list[dict[str, Any]] | None = None) -> Config:
    """Two epochs of four steps, each process with 4 pictures a step."""
    recorders = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
    labels = dict(
        labels=dict(type='ModuleInputs', source='head.loss_module'))
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='Noise'),
        sampler=dict(type='DefaultSampler', shuffle=True))
    # One that takes the place of a default one.
    checkpoint, = [hook for hook in ours
                   if hook['type'] == 'DistillCheckpointHook'] or [None]
    return Config(
        dict(
            default_scope='mmrazor',
            work_dir=f'{folder}/{name}',
            experiment_name=name,
            launcher='pytorch',
            log_level='ERROR',
            randomness=dict(seed=0),
            visualizer=dict(type='mmengine.Visualizer', vis_backends=[]),
            model=dict(
                type='mmrazor.SingleTeacherDistill',
                data_preprocessor=dict(
                    type='mmpretrain.ClsDataPreprocessor',
                    mean=[127.5] * 3,
                    std=[127.5] * 3),
                architecture=network(4, unused=unused, frozen=frozen),
                teacher=network(8),
                teacher_ckpt=f'{folder}/teacher.pth',
                distiller=dict(
                    type='mmrazor.ConfigurableDistiller',
                    student_recorders=dict(**recorders, **labels),
                    teacher_recorders=recorders,
                    distill_losses=dict(
                        loss_wsld=dict(type='WSLDLoss', tau=2)),
                    loss_forward_mappings=dict(
                        loss_wsld=dict(
                            student=dict(from_student=True, recorder='fc'),
                            teacher=dict(from_student=False, recorder='fc'),
                            gt_labels=dict(
                                from_student=True, recorder='labels',
                                data_idx=1))))),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(
                accumulative_counts=accumulate,
                optimizer=dict(
                    type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4,
                    **(optimizer or {}))),
            val_dataloader=dict(
                loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_cfg=dict(type='mmrazor.SingleTeacherDistillValLoop'),
            val_evaluator=dict(type='mmpretrain.Accuracy'),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=[*(hooks or []),
                          *(hook for hook in ours if hook is not checkpoint)],
            model_wrapper_cfg=dict(broadcast_buffers=False, **wrapper)
            if wrapper else None))


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
        steps.append({
            name: parameter.grad.clone()
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        })
        step(**kwargs)

    wrapper.step = recorded
    runner.train()
    averages = [hook.ema_model for hook in runner.hooks
                if hasattr(hook, 'ema_model')]
    steps.append({
        f'{number}.{name}'[2 if number == 0 else 0:]: value.clone()
        for number, one in enumerate([module, *averages])
        for name, value in one.state_dict().items()
        if value.is_floating_point()
    })
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
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen([sys.executable, __file__, str(folder),
                          json.dumps(asked)],
                         stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT,
                         text=True,
                         env={
                             **os.environ, 'OMP_NUM_THREADS': '1',
                             'CUDA_VISIBLE_DEVICES': '-1',
                             'PYTHONPATH': os.pathsep.join(
                                 [str(Path(__file__).parents[1]), *sys.path]),
                             'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port,
                             'WORLD_SIZE': '2', 'RANK': rank,
                             'LOCAL_RANK': rank
                         }) for rank in '01'
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(said[0][-3000:] + said[1][-3000:])
    return [torch.load(folder / f'rank{rank}.pth') for rank in '01']


def main() -> None:
    """Be one of the processes."""
    folder = sys.argv[1]
    torch.set_num_threads(1)
    wsld_plugin.compat.quiet()
    # Laying out the text takes longer than the training.
    Config.pretty_text = ''  # type: ignore[assignment]
    rank = os.environ['RANK']
    torch.manual_seed(0)
    teacher = MODELS.build(network(8))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
            module.running_mean.normal_()
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
