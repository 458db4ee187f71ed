"""CachedTeacher: what it puts out and what it refuses."""
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from stored import refused, store

from wsld_plugin.caching.record import input_probe
from wsld_plugin.checkpoints import weights_sha256
from wsld_plugin.datasets.views import SeededView

CLASSES, ROWS = 5, 12
PICTURES = torch.randn(ROWS, 3, 4, 4, generator=torch.manual_seed(0))
LOGITS = 3 * torch.randn(ROWS, CLASSES, generator=torch.manual_seed(1))


def build(folder, **changes):
    return MODELS.build(dict(
        type='CachedTeacher',
        cache=str(folder / 'cache'),
        teacher=dict(type='Net', depth=34, parts=(1, dict)),
        teacher_ckpt=str(folder / 'teacher.pth')) | changes)


@pytest.fixture
def folder(tmp_path):
    """A teacher's file and its answers to twelve pictures."""
    torch.save(dict(w=torch.ones(2)), tmp_path / 'teacher.pth')
    store(tmp_path / 'cache', LOGITS, torch.arange(ROWS) % CLASSES,
          pixels=np.arange(ROWS) + 100, inputs=input_probe(PICTURES),
          fingerprint='print', preprocessor=None, classes=(1, dict),
          **build(tmp_path).identity())
    return tmp_path


def samples(*rows, **changes):
    views = [SeededView(row, row % CLASSES, row + 100, 'print')._replace(
        **changes) for row in rows]
    return [BaseDataElement(metainfo=dict(seeded_view=v)) for v in views]


def test_logits_come_out_where_the_recorder_listens(folder):
    # As EMAHook does, which must not copy the files.
    teacher = deepcopy(build(folder))
    recorded = []
    teacher.get_submodule('head.fc').register_forward_hook(
        lambda module, args, output: recorded.append(output))
    inputs = PICTURES[[7, 2, 7]]
    assert teacher(inputs, samples(7, 2, 7), mode='loss') == {}
    gap = recorded[0].log_softmax(1) - LOGITS[[7, 2, 7]].log_softmax(1)
    assert gap.abs().max() < 4e-3
    assert recorded[0].dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher(inputs, samples(7, 2, 7)), recorded[0])


def test_it_is_no_part_of_checkpoints_and_needs_no_cache(tmp_path):
    teacher = build(tmp_path, source='a.b.c')
    assert not teacher.state_dict() and not [*teacher.parameters()]
    assert isinstance(teacher.get_submodule('a.b.c'), torch.nn.Identity)
    with refused('there is no teacher cache'):
        teacher.init_weights()


@pytest.mark.parametrize('changes, error, said', [
    (dict(teacher='resnet34'), TypeError, 'teacher must be a config, got str'),
    (dict(teacher_ckpt=None), ValueError, 'must not be empty, got None'),
    (dict(source=''), ValueError, "must not be empty, got .* and ''"),
    (dict(teacher=dict(type='Net', depth=50, parts=(1, dict))), ValueError,
     r'with teacher\.depth=34, but the config now has 50'),
    (dict(source='fc'), ValueError, "source='head.fc', but .* has 'fc'"),
])
def test_mistakes_and_other_teachers(changes, error, said, folder):
    with pytest.raises(error, match=said):
        build(folder, **changes).init_weights()


def test_other_weights_are_refused(folder):
    path = str(folder / 'teacher.pth')
    before = weights_sha256(path)
    # What else the file holds, and a wrapper's prefix, do not count.
    torch.save(dict(state_dict={'module.w': torch.ones(2)}, meta={}), path)
    assert weights_sha256(path) == before
    build(folder).init_weights()
    torch.save(dict(w=torch.tensor([1., 1 + 2**-23])), path)
    with refused('teacher_sha256='):
        build(folder).init_weights()


@pytest.mark.parametrize('changes, said', [
    (dict(fingerprint='other'), 'fingerprint=print, .* row 3 now has other'),
    (dict(label=4), 'with label=3, but the sample of row 3 now has 4'),
    (dict(label=None), 'with label=3, .* row 3 now has None'),
    (dict(pixels=9), 'with pixels=103, but the sample of row 3 now has 9'),
    (dict(row=ROWS), 'row 12 of .* which has 12, is damaged or not there'),
])
def test_other_samples_are_refused(changes, said, folder):
    with refused(said):
        build(folder)(PICTURES[[2, 3]], samples(2) + samples(3, **changes))


def test_other_preprocessing_is_refused(folder):
    # None is none.
    build(folder).expect_distiller(
        SimpleNamespace(data_preprocessor=torch.nn.Module()))
    # bfloat16 is not another one.
    build(folder)(PICTURES[:4].bfloat16(), samples(0, 1, 2, 3))
    for inputs in (PICTURES[:4] + 0.01, PICTURES[:4].flip(1)):
        with refused('data_preprocessor'):
            build(folder)(inputs, samples(0, 1, 2, 3))


def test_what_has_no_answer(folder):
    mixed = samples(1)
    mixed[0].gt_score = torch.ones(CLASSES)
    for batch, mode, said in (
        ([BaseDataElement()], 'loss', "dataset.type='SeededViews'"),
        (mixed, 'loss', 'gt_score, soft labels'),
        (None, 'tensor', "got 'tensor' and NoneType: .* predicts nothing"),
        (samples(1), 'predict', "got 'predict' and list")):
        with pytest.raises(ValueError, match=said):
            build(folder)(PICTURES[:1], batch, mode=mode)
