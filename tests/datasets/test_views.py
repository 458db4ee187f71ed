"""SeededViews replays its augmentations; ViewSampler deals them out."""
from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from wsld_plugin.datasets import SeededViews, ViewSampler


@TRANSFORMS.register_module()
class DrawFromAll:
    """Packs a scan with noise from all three generators added."""

    def __init__(self, strength: int = 9) -> None:
        self.strength = strength

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results['img'].transpose(2, 0, 1).astype(np.int64)
        image += random.randrange(1, self.strength)
        image += np.random.randint(self.strength, size=image.shape)
        noise = torch.randint(self.strength, image.shape)
        return dict(
            inputs=torch.from_numpy(image) + noise,
            data_samples=BaseDataElement(
                gt_label=torch.tensor([results['gt_label']])))


@TRANSFORMS.register_module()
class LosesTheThird(DrawFromAll):
    """Returns nothing for sample 2."""

    def __call__(self, results: dict[str, Any]) -> Any:
        return None if results['sample_idx'] == 2 else super().__call__(
            results)


def config(**changes: Any) -> dict[str, Any]:
    dataset = dict(
        type='DigitsDataset',
        split='val',
        indices=4,
        pipeline=[dict(type='DrawFromAll')])
    return dict(type='SeededViews', dataset=dataset, views=3) | changes


def all_items(views: SeededViews) -> list[tuple]:
    return [content(views[index]) for index in range(len(views))]


def content(item: dict[str, Any]) -> tuple:
    view = item['data_samples'].seeded_view
    return item['inputs'].tolist(), tuple(view)


@pytest.fixture(scope='module')
def views() -> SeededViews:
    return DATASETS.build(config())


def test_passes_are_equal_and_views_differ(views: SeededViews) -> None:
    first = all_items(views)
    random.random(), np.random.rand(), torch.rand(5)
    assert all_items(views)[::-1] == [
        content(views[index]) for index in reversed(range(12))]
    assert all_items(views) == first
    assert len({str(image) for image, _ in first}) == 12
    assert len({view[2] for _, view in first}) == 12
    labels = [view[1] for _, view in first]
    assert labels == labels[:4] * 3
    assert [view[0] for _, view in first] == list(range(12))
    other = DATASETS.build(config(seed=1))
    assert not {str(image) for image, _ in first} & {
        str(image) for image, _ in all_items(other)}


def test_generators_are_as_before(views: SeededViews) -> None:

    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seed()
    expected = draw()
    seed()
    views[7]
    assert draw() == expected


@pytest.mark.parametrize('workers, context, persistent', [
    (2, 'fork', False),
    (2, 'fork', True),
    (1, 'spawn', True),
])
def test_workers_make_the_same(workers: int, context: str, persistent: bool,
                               views: SeededViews) -> None:
    loader = DataLoader(
        views,
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent,
        collate_fn=list)
    for _ in range(2):
        items = [content(item) for batch in loader for item in batch]
        assert items == all_items(views)


def test_no_other_sample_in_its_place() -> None:
    dataset = config()['dataset'] | dict(pipeline=[dict(type='LosesTheThird')])
    views = DATASETS.build(config(dataset=dataset))
    assert views[5]['data_samples'].seeded_view.row == 5
    with pytest.raises(ValueError, match='view 1 of sample 2: SeededViews'):
        views[6]
    with pytest.raises(IndexError, match=r'\[0, 12\), got 12'):
        views[12]


def test_fingerprint_tells_data_and_rule_apart(
        views: SeededViews, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = config()['dataset']
    changes: list[dict[str, Any]] = [
        dict(views=4),
        dict(seed=1),
        dict(dataset=dataset | dict(split='test')),
        dict(dataset=dataset | dict(indices=3)),
        dict(dataset=dataset | dict(metainfo=dict(classes=('a', 'b')))),
        dict(dataset=dataset | dict(
            pipeline=[dict(type='DrawFromAll', strength=8)])),
    ]
    digests = {DATASETS.build(config(**change)).fingerprint
               for change in changes}
    assert len(digests | {views.fingerprint}) == 7
    assert DATASETS.build(config()).fingerprint == views.fingerprint
    assert SeededViews(dataset, 3).fingerprint == views.fingerprint


def test_fingerprint_does_not_depend_on_the_folder(tmp_path: Any) -> None:
    from mmpretrain.datasets import CustomDataset
    digests = []
    for root in ('here', 'there'):
        for name in ('cat/1.png', 'cat/2.png', 'dog/1.png'):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        digests.append(
            SeededViews(
                dict(type=CustomDataset, data_prefix=str(tmp_path / root)),
                2).fingerprint)
    assert digests[0] == digests[1]


@pytest.mark.parametrize('changes, error, said', [
    (dict(views=0), ValueError, 'views must be an integer of at least 1'),
    (dict(seed=-1), ValueError, 'seed must be an integer of at least 0'),
    (dict(dataset=[1, 2]), TypeError, 'dataset must be a config, got list'),
    (dict(dataset=dict(type='ConcatDataset', datasets=[config()['dataset']])),
     TypeError, 'must be a BaseDataset of mmengine, got ConcatDataset'),
])
def test_mistakes(changes: dict, error: type, said: str) -> None:
    arguments = config(**changes)
    arguments.pop('type')
    with pytest.raises(error, match=said):
        SeededViews(**arguments)


def epochs(sampler: Any, number: int) -> Iterator[list[int]]:
    for epoch in range(number):
        sampler.set_epoch(epoch)
        yield list(sampler)


def test_each_epoch_is_a_view_in_the_stock_order(views: SeededViews) -> None:
    sampler = DATA_SAMPLERS.build(
        dict(type='ViewSampler', shuffle=True),
        default_args=dict(dataset=views, seed=3))
    stock = DefaultSampler(range(4), shuffle=True, seed=3)
    assert len(sampler) == 4
    for epoch, (ours, theirs) in enumerate(
            zip(epochs(sampler, 5), epochs(stock, 5))):
        assert ours == [epoch % 3 * 4 + index for index in theirs]
    with pytest.raises(TypeError, match='must be a SeededViews, got range'):
        ViewSampler(range(4))


def test_ranks_share_a_view(views: SeededViews,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info',
                            lambda rank=rank: (rank, 3))
        sampler = ViewSampler(views, seed=0)
        sampler.set_epoch(2)
        shares.append(list(sampler))
        assert len(sampler) == 2
    # Rounded up: 4 samples for 3 ranks.
    assert {index for share in shares for index in share} == {8, 9, 10, 11}
