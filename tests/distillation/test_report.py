"""The figures of a distillation, and the page that tells them."""
import contextlib
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from wsld_plugin.checkpoints import export_onnx, export_student
from wsld_plugin.distillation.cost import Cost, measure_cost
from wsld_plugin.distillation.findings import Findings, Judged, metrics
from wsld_plugin.distillation.report import report_page
from wsld_plugin.models.networks import network

CLASSES = ('<script>a & "b"</script>', "naïve {{ 'x' }} 犬", 'long' * 40)
COST = Cost(12, 34, 5.0, 0.5, 0.1, 'CPU, 1 thread')


def judged(name, predictions):
    chances = 0.1 + 0.7 * torch.eye(3)[torch.tensor(predictions)]
    return Judged(name, f'<i>{name}', chances, COST)


@pytest.fixture(scope='module')
def findings(tmp_path_factory):
    """Twelve oblong test pictures, and a student with random weights."""
    out = tmp_path_factory.mktemp("it's & <b>")
    files = [(f'{number}.png', number % 3) for number in range(12)]
    random = np.random.RandomState(0)
    for name, _ in files:
        small = random.randint(256, size=(6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(out / name), cv2.resize(small, (50, 41)))
    # The one that the lines to copy are for has 16 bits.
    deep = random.randint(2**16, size=(41, 50), dtype=np.uint16)
    cv2.imwrite(str(out / files[0][0]), deep)
    folder = SimpleNamespace(
        root=out, classes=CLASSES, digest='sha256 12', notes=['<u> are grey'],
        left_out=[(f'<{n}>.jpg', 'damaged') for n in range(21)],
        splits=dict(train=files[:2], val=files[:2], test=files))
    labels = [label for _, label in files]
    model = network('resnet8', 'cifar10')
    model['head'].update(num_classes=3)
    # Channels that differ, and weights that make the classes differ.
    model['data_preprocessor'].update(mean=[90, 120, 150], std=[40, 50, 60])
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    cfg.test_dataloader = dict(dataset=dict(
        type='CustomDataset', data_prefix=str(out),
        ann_file=str(out / 'test.txt'), pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=36, edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]))
    (out / 'test.txt').write_text(''.join(f'{name} 0\n' for name, _ in files))
    cfg.dump(out / 'config.py')
    torch.manual_seed(0)
    weights = MODELS.build(dict(model, _scope_='mmpretrain')).state_dict()
    weights['head.fc.weight'] *= 5
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=weights, meta=meta), out / 'epoch_1.pth')
    student = export_student(str(out / 'epoch_1.pth'), str(out / 'x')).path
    onnx = export_onnx(str(student), str(out / 'x'),
                       with_preprocessing=True).path
    return Findings(
        folder, [judged('teacher', labels),
                 judged('student alone', labels[:4] + [0] * 8),
                 judged('student distilled', [*labels[:9], 0, 2, 0])],
        {'none yet': out}, dict(data=out, tau='<auto>'), dict(search=90.),
        pd.DataFrame(dict(tau=[1., 4.], accuracy=[math.nan, 50.])), student,
        onnx, out / 'config.py')


def test_figures_by_hand(findings):
    found = metrics(findings)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    student = found['networks']['student distilled']
    assert (student['correct'], student['pictures']) == (10, 12)
    # Wilson's score interval, from its formula.
    share, z2 = 10 / 12, 1.959964**2
    middle = (share + z2 / 24) / (1 + z2 / 12)
    half = math.sqrt(z2 * (share * (1 - share) / 12 + z2 / 576)) / (
        1 + z2 / 12)
    assert student['interval'] == pytest.approx(
        [100 * (middle - half), 100 * (middle + half)], abs=1e-3)
    # Alone right: 4, and 6 and 9 of the rest, whose labels are 0.
    alone = found['comparisons']['student alone']
    assert (alone['only_here'], alone['only_there']) == (4, 0)
    assert alone['points'] == pytest.approx(100 * 4 / 12)
    assert alone['p_value'] == pytest.approx(2 / 2**4)
    assert found['confused'][0] == {
        'class': CLASSES[1], 'taken for': CLASSES[2], 'pictures': 1,
        'of the class (%)': 25.0}
    assert found['classes'][2]['student distilled (%)'] == 75
    assert found['classes'][2]['train'] == 0
    assert found['trials'][0] == dict(tau=1.0, accuracy=None)


def test_answers_that_are_not_finite_are_wrong(findings):
    lost = judged('student distilled', [0] * 12)
    lost.probabilities[:] = math.nan
    few = findings._replace(networks=[findings.networks[0], lost])
    assert metrics(few)['networks'][lost.name]['correct'] == 0
    page = report_page(few)
    assert 'was not measured' in page
    one = findings.networks[0]._replace(probabilities=torch.rand(11, 3))
    with pytest.raises(ValueError, match=r'teacher: .*\(12, 3\).*\(11, 3\)'):
        metrics(findings._replace(networks=[one, lost]))


def test_the_page_stands_alone_and_escapes(findings):
    page = report_page(findings)
    parser = HTMLParser()
    tags, outside = set(), []

    def note(tag, attributes):
        tags.add(tag)
        outside.extend(value for key, value in attributes
                       if key in ('src', 'href')
                       and not str(value).startswith(('data:', '#')))
        assert tag != 'img' or dict(attributes)['alt']

    parser.handle_starttag = note  # type: ignore[method-assign]
    parser.feed(page)
    assert not tags & {'script', 'i', 'u', '12'} and not outside
    for text in (*CLASSES, '<i>teacher', '<auto>', '<19>.jpg', '<u> are'):
        assert text in html.unescape(page)
    assert '<20>.jpg' not in html.unescape(page)
    # 4 against 0: the difference may be chance.
    assert 'in 12.5 of 100 cases (exact McNemar test); this one cannot' in page
    # A picture that is gone is no reason to lose the report.
    path = findings.folder.root / '11.png'
    kept = path.read_bytes()
    path.unlink()
    assert 'cannot be read any more' in report_page(findings)
    path.write_bytes(kept)


def test_the_lines_of_the_page_run_and_agree(findings):
    blocks = re.findall(r'<code>(.*?)</code>', report_page(findings), re.S)
    said = []
    for lines in map(html.unescape, blocks[:2]):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(lines, {})
        said.append(out.getvalue().strip().rsplit(' ', 1))
    # mmpretrain tells its progress first.
    assert said[1][0] in CLASSES and said[0][0].endswith(said[1][0])
    assert float(said[0][1]) == pytest.approx(float(said[1][1]), abs=1e-4)


def test_cost_by_hand():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
            self.norm = nn.BatchNorm2d(8)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Sequential(nn.Dropout(), nn.Linear(8, 3))

        def forward(self, images):
            words = self.norm(self.conv(images)).flatten(2).transpose(1, 2)
            return self.last(self.attend(words, words, words)[0].mean(1))

    cost = measure_cost(Network().eval(), torch.zeros(1, 4, 5, 5))
    attention = 25 * 8 * 24 + 25 * 8 * 8 + 2 * 25 * 25 * 8
    assert cost.multiply_adds == 25 * 8 * 2 * 9 + attention + 24
    weights = (8 * 2 * 9 + 8) + 16 + (24 * 9 + 8 * 9) + 27
    assert cost.parameters == weights
    # Running mean, deviation and count of the normalisation are kept, too.
    assert cost.size_mb == pytest.approx((4 * (weights + 16) + 8) / 1e6)
    assert cost.latency_ms > 0 and cost.spread >= 0
