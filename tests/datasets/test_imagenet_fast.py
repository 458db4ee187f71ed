"""The faster ImageNet base gives the same batches as the plain one."""
from __future__ import annotations

import os
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

CONFIGS = Path(__file__).parents[2] / 'configs'
BASES = CONFIGS / '_base_' / 'datasets'
FAST = BASES / 'imagenet_bs32_fast.py'


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of two classes, in folders of one name per class."""
    root = tmp_path_factory.mktemp('imagenet')
    photos = load_sample_images().images
    for split in ('train', 'val'):
        lines = []
        for number in range(4):
            name = f'{number % 2}/{number}.JPEG'
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            crop = photos[number % 2][number:300, number:400]
            Image.fromarray(crop).save(path)
            lines.append(f'{name} {number % 2}\n')
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return root


def loader_config(path: Path, split: str, root: Path) -> Any:
    config = Config.fromfile(path)[f'{split}_dataloader']
    config.dataset.data_root = str(root)
    config.sampler.shuffle = False
    config.num_workers = 0
    return config


def preprocessed(config: Any, training: bool) -> dict[str, Any]:
    """The first batch as a classifier gets it."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(config, seed=0)
        preprocessor = MODELS.build(
            dict(
                type='ClsDataPreprocessor',
                num_classes=1000,
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                to_rgb=True))
        np.random.seed(5)
        batch = next(iter(loader))
        return preprocessor(batch, training=training)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_same_batches(split: str, imagenet: Path) -> None:
    fast, plain = (
        preprocessed(
            loader_config(path, split, imagenet), training=split == 'train')
        for path in (FAST, BASES / 'imagenet_bs32.py'))
    assert fast['inputs'].shape == (4, 3, 224, 224)
    torch.testing.assert_close(
        fast['inputs'], plain['inputs'], rtol=0, atol=0)
    assert len(fast['data_samples']) == 4
    for ours, theirs in zip(fast['data_samples'], plain['data_samples']):
        assert ours.gt_label.tolist() == theirs.gt_label.tolist()
        assert ours.metainfo == theirs.metainfo


@pytest.mark.parametrize('cores,processes,workers', [
    (1, None, 1),
    (2, None, 1),
    (16, None, 15),
    (16, '4', 3),
    (4, '8', 1),
    (96, '1', 16),
])
def test_workers_share_the_cores(cores: int, processes: str | None,
                                 workers: int,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    if processes is not None:
        monkeypatch.setenv('LOCAL_WORLD_SIZE', processes)
    monkeypatch.setattr(
        os, 'sched_getaffinity', lambda process: set(range(cores)),
        raising=False)
    config = Config.fromfile(FAST)
    assert config.train_dataloader.num_workers == workers
    assert config.val_dataloader.num_workers == workers
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: cores)
    assert Config.fromfile(FAST).train_dataloader.num_workers == workers


def test_takes_the_place_of_the_plain_base(imagenet: Path,
                                           tmp_path: Path) -> None:
    bases = Config.fromfile(CONFIGS / 'wsld_r34_r18_in1k.py')
    names = ('models/resnet18.py', 'datasets/imagenet_bs32_fast.py',
             'schedules/imagenet_bs256.py', 'runtime.py')
    mine = tmp_path / 'mine.py'
    mine.write_text(f'_base_ = {[str(CONFIGS / "_base_" / n) for n in names]}')
    config = Config.fromfile(mine)
    assert config.val_evaluator == bases.val_evaluator
    assert config.train_dataloader.batch_size == 32
    assert not config.train_dataloader.persistent_workers
    # What a run writes down of its config can be read again.
    config.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.train_dataloader == config.train_dataloader
