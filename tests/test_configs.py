"""Every shipped config, built as shipped; the ImageNet ones on photographs."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from wsld_plugin.checkpoints import export_student, read_checkpoint

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
MAIN = ROOT / 'configs' / 'wsld_r34_r18_in1k.py'
NAME = re.compile(r'(ce|kd_[a-z0-9-]+|wsld_[a-z0-9-]+)_[a-z0-9]+_'
                  r'[a-z0-9]+(-[a-z0-9]+)*\.py')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of crops of photographs, in ImageNet's layout."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for split, count in (('train', 8), ('val', 4)):
        lines = []
        for index in range(count):
            label = index % 2
            height, width = photos[label].shape[:2]
            top = rng.integers(height - 280)
            left = rng.integers(width - 330)
            name = f'n0{label}/{index}.JPEG'
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            crop = photos[label][top:top + 280, left:left + 330]
            Image.fromarray(crop).save(path)
            lines.append(f'{name} {label}\n')
        annotations = root / 'meta' / f'{split}.txt'
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(''.join(lines))
    return root


def small_run(config: Path, imagenet: Path, work_dir: Path) -> dict[str, Any]:
    """Overrides that make a shipped config run here, and nothing else."""
    options: dict[str, Any] = {
        'work_dir': str(work_dir),
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1,
    }
    if '_r34_' in config.name and not config.name.startswith('ce'):
        # There is no network where tests run.
        options['model.teacher_ckpt'] = None
    if config.stem.endswith('-cached'):
        options |= {
            'model.teacher.teacher_ckpt': str(work_dir / 'teacher.pth'),
            'model.teacher.cache': str(work_dir / 'cache'),
            'train_dataloader.dataset.views': 1,
            'train_dataloader.dataset.dataset.indices': 4,
        }
    if 'in1k' in config.name:
        options |= {
            f'{split}_dataloader.dataset.data_root': str(imagenet)
            for split in ('train', 'val', 'test')
        }
        if config.stem.endswith('-cached'):
            root = options.pop('train_dataloader.dataset.data_root')
            options['train_dataloader.dataset.dataset.data_root'] = root
    return options


def make_cache(config: Path, options: dict[str, Any],
               call_tool: Callable[..., None]) -> None:
    """Answers of a random teacher, by the tool."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher.teacher)
    torch.save(teacher.state_dict(), options['model.teacher.teacher_ckpt'])
    call_tool('cache_teacher.py', config, '--cfg-options',
              *(f'{key}={value}' for key, value in options.items()))


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.name)
def test_config_builds_and_learns(config: Path, imagenet: Path,
                                  tmp_path: Path,
                                  call_tool: Callable[..., None]) -> None:
    assert NAME.fullmatch(config.name)
    cfg = Config.fromfile(config)
    options = small_run(config, imagenet, tmp_path)
    if config.stem.endswith('-cached'):
        make_cache(config, options, call_tool)
    cfg.merge_from_dict(options)
    cfg.experiment_name = f'{config.stem}_{tmp_path.name}'
    cfg.log_level = 'WARNING'
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    runner = Runner.from_cfg(cfg)
    model = runner.model
    student = getattr(model, 'architecture', model)
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, training=True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    names = {key for key in losses if 'loss' in key and key != 'loss'}
    distilled = {'kd': {'distill.loss_kd'}, 'wsld': {'distill.loss_wsld'}}
    method = config.name.split('_')[0]
    assert {name for name in names
            if name.startswith('distill')} == distilled.get(method, set())
    assert all(torch.isfinite(losses[name]) for name in names)
    # Every weight of the student takes part, so that DDP need not search for
    # those that do not.
    assert all(param.grad is not None for param in student.parameters())
    assert 'find_unused_parameters' not in cfg


def differences(one: Any, other: Any, path: str = '') -> dict[str, tuple]:
    """Where two configs differ, by dotted path."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = {}
        for key in one.keys() | other.keys():
            found |= differences(
                one.get(key), other.get(key), f'{path}.{key}'.lstrip('.'))
        return found
    return {} if one == other else {path: (one, other)}


def compare(name: str) -> dict[str, tuple]:
    main, other = (Config.fromfile(path).to_dict()
                   for path in (MAIN, ROOT / 'configs' / name))
    return differences(main, other)


def test_the_authors_recipe() -> None:
    cfg = Config.fromfile(MAIN)
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    assert cfg.param_scheduler.milestones == [30, 60, 90]
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.train_dataloader.batch_size * 8 == 256
    loss = cfg.model.distiller.distill_losses.loss_wsld
    assert loss == dict(type='WSLDLoss', tau=2, loss_weight=2.5)
    assert cfg.model.teacher_norm_eval is False
    assert cfg.model.teacher_ckpt.endswith(
        '/resnet34_8xb32_in1k_20210831-f257d4e6.pth')


def test_siblings_differ_from_it_where_they_say() -> None:
    assert compare('wsld_r34_r18_in1k-evalbn.py') == {
        'model.teacher_norm_eval': (False, True),
        'optim_wrapper.optimizer.nesterov': (True, False),
    }
    assert set(compare('kd_r34_r18_in1k.py')) == {
        f'model.distiller.{field}' for field in (
            'student_recorders.gt_labels', 'distill_losses.loss_wsld',
            'distill_losses.loss_kd', 'loss_forward_mappings.loss_wsld',
            'loss_forward_mappings.loss_kd')
    }
    assert {path.split('.')[0] for path in compare('ce_r18_in1k.py')
            } == {'model', 'custom_hooks', 'resnet34'}


@pytest.mark.parametrize('name, views', [
    ('wsld_r34_r18_in1k-evalbn', 10), ('wsld_r34_r18_digits', 20)])
def test_cached_siblings_differ_by_the_cache(name: str, views: int) -> None:
    online, cached = (
        Config.fromfile(ROOT / 'configs' / f'{one}.py').to_dict()
        for one in (name, f'{name}-cached'))
    teacher = cached['model'].pop('teacher')
    assert teacher['teacher'] == online['model'].pop('teacher')
    assert teacher['teacher_ckpt'] == online['model'].pop('teacher_ckpt')
    assert cached['model'].pop('teacher_ckpt') is None
    dataset = cached['train_dataloader'].pop('dataset')
    assert dataset == dict(
        type='SeededViews',
        dataset=online['train_dataloader'].pop('dataset'),
        views=views)
    assert differences(online, cached) == {
        'train_dataloader.sampler.type': ('DefaultSampler', 'ViewSampler')}


def test_batch_augments_of_the_student_are_kept(imagenet: Path,
                                                tmp_path: Path) -> None:
    cfg = Config.fromfile(MAIN)
    cfg.merge_from_dict(small_run(MAIN, imagenet, tmp_path))
    cfg.model.architecture.train_cfg = dict(
        augments=dict(type='CutMix', alpha=1.0))
    cfg.experiment_name = f'augments_{tmp_path.name}'
    cfg.train_dataloader.batch_size = 2
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.train_dataloader))
    data = runner.model.data_preprocessor(batch, training=True)
    assert all(one.gt_score.shape == (1000, ) for one in data['data_samples'])
    losses = runner.model(**data, mode='loss')
    assert torch.isfinite(losses['distill.loss_wsld'])


@pytest.fixture(scope='module')
def trained(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of the main config after an epoch of two steps."""
    work_dir = tmp_path_factory.mktemp('main config')
    options = small_run(MAIN, imagenet, work_dir)
    options['default_hooks.checkpoint.save_best'] = None
    options['default_hooks.logger.interval'] = 1
    del options['work_dir']
    subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'train.py'),
            str(MAIN), '--work-dir',
            str(work_dir), '--cfg-options',
            *(f'{key}={value}' for key, value in options.items())
        ],
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        check=True)
    return work_dir


def test_main_config_trains_and_validates(trained: Path) -> None:
    log, = trained.glob('*/vis_data/scalars.json')
    teacher, *steps, end = map(json.loads, log.read_text().splitlines())
    assert set(teacher) == {
        'teacher/accuracy/top1', 'teacher/accuracy/top5', 'step'
    }
    assert len(steps) == 2
    for step in steps:
        assert step['loss'] == pytest.approx(
            step['student.loss'] + step['distill.loss_wsld'], rel=1e-5)
    assert {'accuracy/top1', 'accuracy/top5'} < set(end)


def test_exported_student_is_mmpretrains(trained: Path,
                                         tmp_path: Path) -> None:
    import mmpretrain
    path, _ = export_student(str(trained / 'epoch_1.pth'), f'{tmp_path}/')
    assert re.fullmatch(r'wsld_r34_r18_in1k_\d{8}-[0-9a-f]{8}\.pth', path.name)
    model = mmpretrain.get_model(
        'resnet18_8xb32_in1k', pretrained=str(path))
    weights: dict[str, Tensor] = model.state_dict()
    exported = read_checkpoint(str(path))['state_dict']
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[key], exported[key]) for key in weights)
    assert model._dataset_meta['classes'][281] == 'tabby, tabby cat'


