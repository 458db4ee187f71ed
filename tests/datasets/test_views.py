"""SeededViews replays its augmentations; ViewSampler deals them out."""
import random

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
    """Packs a scan with noise from all three generators; loses one."""

    def __init__(self, strength=9, lost=-1):
        self.strength, self.lost = strength, lost

    def __call__(self, results):
        image = results['img'].transpose(2, 0, 1).astype(np.int64)
        image += random.randrange(1, self.strength)
        image += np.random.randint(self.strength, size=image.shape)
        noise = torch.randint(self.strength, image.shape)
        return None if results['sample_idx'] == self.lost else dict(
            inputs=torch.from_numpy(image) + noise,
            data_samples=BaseDataElement(
                gt_label=torch.tensor([results['gt_label']])))


DATASET = dict(type='DigitsDataset', split='val', indices=4)


def build(noise=None, views=3, seed=0, **changes):
    pipeline = [dict(noise or {}, type='DrawFromAll')]
    return SeededViews(DATASET | dict(pipeline=pipeline) | changes, views,
                       seed)


def content(item):
    view = item['data_samples'].seeded_view
    return str(item['inputs'].tolist()), *view


def all_items(views):
    return [content(views[index]) for index in range(len(views))]


@pytest.fixture(scope='module')
def views():
    return build()


def test_passes_are_equal_and_views_differ(views):
    first = all_items(views)
    random.random(), np.random.rand(), torch.rand(5)
    assert [content(views[index]) for index in reversed(range(12))
            ] == first[::-1]
    images, rows, labels, pixels, _ = map(list, zip(*first))
    assert len(set(images)) == len(set(pixels)) == 12
    assert (rows, labels) == ([*range(12)], labels[:4] * 3)
    assert not {*images} & {item[0] for item in all_items(build(seed=1))}


def test_generators_are_as_before(views):
    drawn = []
    for use in (lambda: None, lambda: views[7]):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        use()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize('workers, context, persistent', [
    (2, 'fork', False), (2, 'fork', True), (1, 'spawn', True)])
def test_workers_make_the_same(workers, context, persistent, views):
    loader = DataLoader(
        views, batch_size=2, num_workers=workers, collate_fn=list,
        multiprocessing_context=context, persistent_workers=persistent)
    for _ in range(2):
        items = [content(item) for batch in loader for item in batch]
        assert items == all_items(views)


def test_no_other_sample_in_its_place():
    views = build(dict(lost=2))
    assert views[5]['data_samples'].seeded_view.row == 5
    with pytest.raises(ValueError, match='view 1 of sample 2: SeededViews'):
        views[6]
    with pytest.raises(IndexError, match=r'\[0, 12\), got 12'):
        views[12]


def test_fingerprint_tells_data_and_rule_apart(views):
    changes = [
        dict(views=4), dict(seed=1), dict(split='test'), dict(indices=3),
        dict(metainfo=dict(classes=('a', 'b'))), dict(noise=dict(strength=8))]
    digests = {build(**change).fingerprint for change in changes}
    assert len(digests | {views.fingerprint}) == 7
    assert build().fingerprint == views.fingerprint


def test_fingerprint_does_not_depend_on_the_folder(tmp_path):
    from mmpretrain.datasets import CustomDataset
    for root in ('here', 'there'):
        for name in ('cat/1.png', 'cat/2.png', 'dog/1.png'):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    here, there = (SeededViews(dict(
        type=CustomDataset, data_prefix=str(tmp_path / root)), 2).fingerprint
        for root in ('here', 'there'))
    assert here == there


@pytest.mark.parametrize('changes, error, said', [
    (dict(views=0), ValueError, 'views must be an integer of at least 1'),
    (dict(seed=-1), ValueError, 'seed must be an integer of at least 0'),
    (dict(dataset=[1, 2]), TypeError, 'dataset must be a config, got list'),
    (dict(dataset=dict(type='ConcatDataset', datasets=[DATASET])), TypeError,
     'must be a BaseDataset of mmengine, got ConcatDataset'),
])
def test_mistakes(changes, error, said):
    with pytest.raises(error, match=said):
        DATASETS.build(dict(
            type='SeededViews', dataset=DATASET, views=3) | changes)


def test_each_epoch_is_a_view_in_the_stock_order(views):
    sampler = DATA_SAMPLERS.build(dict(
        type='ViewSampler', shuffle=True, dataset=views, seed=3))
    stock = DefaultSampler(range(4), shuffle=True, seed=3)
    assert len(sampler) == 4
    for epoch in range(5):
        sampler.set_epoch(epoch), stock.set_epoch(epoch)
        assert list(sampler) == [epoch % 3 * 4 + index for index in stock]
    with pytest.raises(TypeError, match='must be a SeededViews, got range'):
        ViewSampler(range(4))


def test_ranks_share_a_view(views, monkeypatch):
    dealt = []
    for rank in range(3):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info',
                            lambda rank=rank: (rank, 3))
        sampler = ViewSampler(views, seed=0)
        sampler.set_epoch(2)
        assert len(sampler) == len(list(sampler)) == 2
        dealt += sampler
    # Rounded up: 4 samples for 3 ranks.
    assert set(dealt) == {8, 9, 10, 11}
