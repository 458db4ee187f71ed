"""What is seen of each sample, and how it is told."""
from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from wsld_plugin import analysis
from wsld_plugin.analysis import AnalysisError, LossSettings

CONFIGS = Path(__file__).parents[2] / 'configs'
TINY = Path(__file__).parents[1] / 'tools' / 'tiny_distillation.py'


def test_a_batch_against_the_oracle() -> None:
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 6, 5)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    samples = analysis.inspect_batch(student, teacher, labels, 10,
                                     LossSettings(2.0, ignore_index=-1))
    assert samples.position.tolist() == [10, 11, 13, 14, 15]
    for row, i in enumerate([0, 1, 3, 4, 5]):
        target = oracle.one_hot(int(labels[i]), 5)
        s, t = student[i].tolist(), teacher[i].tolist()
        assert samples.weight[row] == pytest.approx(
            oracle.weight(s, t, target), rel=1e-5)
        assert samples.ce_student[row] == pytest.approx(
            oracle.cross_entropy(s, target), rel=1e-5)
        assert samples.ce_teacher[row] == pytest.approx(
            oracle.cross_entropy(t, target), rel=1e-5)
        label = int(labels[i])
        a = oracle.softmax(s)[label] - 1
        g = 2 * (oracle.softmax(s, 2.0)[label] - oracle.softmax(t, 2.0)[label])
        assert samples.regularization[row] == (abs(g - a) > abs(a))
        order = sorted(range(5), key=lambda k: -s[k])[:3]
        assert samples.student_top[row].tolist() == order
        assert samples.teacher_probs[row].tolist() == pytest.approx(
            sorted(oracle.softmax(t), reverse=True)[:3])


def make(label: list[int], regularization: list[bool],
         weight: list[float]) -> analysis.Samples:
    n = len(label)
    top = np.tile([1, 0], (n, 1))
    return analysis.Samples(
        np.arange(n), np.array(label), np.array(weight), np.ones(n),
        np.ones(n), np.array(regularization), top, top / 1, top, top / 1)


def test_counts_by_class_and_checkpoint() -> None:
    samples = make([0, 0, 1, 1], [True, False, True, True],
                   [0.1, 0.4, 0.3, 0.9])
    rows = analysis.class_rows({'epoch 1': samples}, ['cat', 'dog'])
    assert [(row['class'], row['samples'], row['regularization'],
             row['share (%)']) for row in rows] == [('cat', 2, 1, 50.0),
                                                    ('dog', 2, 2, 100.0)]
    total, = analysis.checkpoint_rows({'epoch 1': samples})
    assert (total['regularization'], total['share (%)']) == (3, 75.0)
    assert total['student top-1 (%)'] == 50.0
    assert total['mean weight'] == pytest.approx(0.425)
    assert analysis.striking_samples(samples, 2, most=True).tolist() == [3, 1]
    assert analysis.striking_samples(samples, 2, most=False).tolist() == [0, 2]
    row = analysis.sample_rows({'epoch 1': samples}, ['cat', 'dog'])[3]
    assert (row['label'], row['regularization'],
            row['student_top']) == ('dog', 1, 'dog > cat')


def test_many_classes_are_cut_to_the_ends() -> None:
    rows = [{'class': str(i), 'share (%)': float(i)} for i in range(100)]
    shown = [row['class'] for row in analysis.striking_classes(rows)]
    assert (shown[0], shown[9], shown[10], shown[-1]) == ('99', '90', '9', '0')


def test_join_keeps_the_order() -> None:
    part = make([0, 1], [True, False], [0.1, 0.2])
    both = analysis.join([part, part])
    assert both.label.tolist() == [0, 1, 0, 1]
    assert both.student_top.shape == (4, 2)


def test_settings_come_from_the_loss() -> None:
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits.py')
    assert analysis.loss_settings(cfg) == (4, 0.0, -100)
    cfg.merge_from_dict({
        'model.distiller.distill_losses.loss_wsld.eps': 1e-7,
        'model.distiller.distill_losses.loss_wsld.ignore_index': 3
    })
    assert analysis.loss_settings(cfg) == (4, 1e-7, 3)
    cfg = Config.fromfile(CONFIGS / 'kd_r34_r18_digits.py')
    assert analysis.loss_settings(cfg).tau == 4
    cfg.model.distiller.distill_losses.loss_2 = dict(type='WSLDLoss', tau=2)
    assert analysis.loss_settings(cfg).tau == 2
    cfg.model.distiller.distill_losses.loss_3 = dict(type='WSLDLoss', tau=3)
    with pytest.raises(AnalysisError, match='got 2'):
        analysis.loss_settings(cfg)
    plain = Config.fromfile(CONFIGS / 'ce_r18_digits.py')
    with pytest.raises(AnalysisError, match='got 0'):
        analysis.loss_settings(plain)


def test_training_samples_are_read_as_those_of_val() -> None:
    cfg = Config.fromfile(TINY)
    cfg.train_dataloader.dataset.indices = 5
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    loader = analysis.evaluation_loader(cfg, 'train')
    again = analysis.evaluation_loader(cfg, 'train')
    (batch, ), (same, ) = list(loader), list(again)
    assert len(batch['inputs']) == 10
    # No crop at random, and in order.
    for left, right in zip(batch['inputs'], same['inputs']):
        assert torch.equal(left, right)
    assert [int(s.gt_label) for s in batch['data_samples']] == 2 * [
        0, 1, 2, 3, 4
    ]
    with pytest.raises(AnalysisError, match='split must be'):
        analysis.evaluation_loader(cfg, 'dev')


def test_networks_see_what_they_were_trained_on() -> None:
    cfg = Config.fromfile(CONFIGS / 'ce_r18_digits.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(cfg.model).state_dict()
    # Where mmpretrain's own configs have it.
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.mean = [1.0, 2.0, 3.0]
    network = analysis.student_network(
        cfg, dict(state_dict=weights), 'student')
    assert network.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]


def test_teacher_of_a_cache_is_the_one_that_answered(tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits-cached.py')
    path = tmp_path / 'teacher.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        expected = MODELS.build(cfg.model.teacher.teacher)
    torch.save(expected.state_dict(), path)
    cfg.model.teacher.teacher_ckpt = str(path)
    network = analysis.teacher_network(cfg, {}, 'student')
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name].cpu(), value)
    cfg.model.teacher.teacher_ckpt = None
    with pytest.raises(AnalysisError, match='_ckpt is not set'):
        analysis.teacher_network(cfg, dict(state_dict={}), 'student')


def test_picture_is_drawn_in_its_colours() -> None:
    blue_first = torch.tensor([[[255.]], [[1.]], [[-3.]]])
    assert analysis.picture(blue_first, True).tolist() == [[[0, 1, 255]]]
    grey = torch.full((1, 2, 2), 7, dtype=torch.uint8)
    assert analysis.picture(grey, False).shape == (2, 2, 3)


class Page(HTMLParser):
    """What a page is made of and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ''
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        if tag not in ('img', 'meta', 'link', 'br'):
            self.open.append(tag)
        self.references += [
            value for key, value in attrs
            if key in ('src', 'href', 'srcset', 'data', 'action')
        ]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == 'style':
            assert 'url(' not in data and '@import' not in data
        self.text += data


def test_page_stands_alone_and_escapes() -> None:
    parsed = Page(
        analysis.page('a < b', [
            analysis.heading('<script>'),
            analysis.table([{'x&y': '<b>', 'z': 0.123456}]),
            analysis.image(b'\x89PNG', '"quoted"'),
            analysis.paragraph('1 < 2')
        ]))
    assert parsed.open == []
    assert not {'script', 'link', 'iframe', 'b'} & set(parsed.tags)
    assert parsed.references == ['data:image/png;base64,iVBORw==']
    assert all(text in parsed.text for text in ('a < b', '<script>', 'x&y',
                                                '0.1235', '1 < 2'))
