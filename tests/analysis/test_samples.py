"""What is seen of each sample, and how it is told."""
import re
from pathlib import Path

import oracle
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from wsld_plugin.analysis import AnalysisError, evaluation_loader
from wsld_plugin.analysis.predictions import student_network, teacher_network
from wsld_plugin.analysis.regularization import (
    LossSettings,
    inspect_batch,
    loss_settings,
    regularization_report,
)
from wsld_plugin.analysis.sample_drawings import picture

CONFIGS = Path(__file__).parents[2] / 'configs'
TINY = Path(__file__).parents[1] / 'tools' / 'tiny_distillation.py'


def build(model):
    return MODELS.build(dict(model, _scope_='mmpretrain'))


def test_a_batch_against_the_oracle():
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 40, 5)
    labels = torch.randint(5, (40, ))
    labels[:6] = torch.tensor([0, 4, -1, 2, 2, 1])
    counted = [i for i in range(40) if i != 2]
    samples = inspect_batch(student, teacher, labels,
                            LossSettings(2.0, ignore_index=-1),
                            ['cat', 'dog', 'crane', 'crane'], 10)
    assert samples['sample'].tolist() == [10 + i for i in counted]
    assert samples['class'][:3].tolist() == ['cat', '4', 'crane']
    for (_, row), i in zip(samples.iterrows(), counted):
        label = int(labels[i])
        target = oracle.one_hot(label, 5)
        s, t = student[i].tolist(), teacher[i].tolist()
        assert [row.weight, row.ce_student, row.ce_teacher] == pytest.approx(
            [oracle.weight(s, t, target), oracle.cross_entropy(s, target),
             oracle.cross_entropy(t, target)], rel=1e-5)
        assert row.regularization == oracle.is_regularization(
            s, t, target, 2.0)
        assert row.teacher_right == (t.index(max(t)) == label)
        names = ['cat', 'dog', 'crane', 'crane', '4']
        likeliest = sorted(range(5), key=lambda k: -s[k])[:3]
        assert row.student_top == ' > '.join(
            f'{100 * oracle.softmax(s)[k]:.1f}% {names[k]}' for k in likeliest)


def test_settings_come_from_the_loss():
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits.py')
    assert loss_settings(cfg) == (4, 0.0, -100)
    cfg.model.distiller.distill_losses.loss_wsld.update(
        eps=1e-7, ignore_index=3)
    assert loss_settings(cfg) == (4, 1e-7, 3)
    cfg = Config.fromfile(CONFIGS / 'kd_r34_r18_digits.py')
    assert loss_settings(cfg).tau == 4
    losses = cfg.model.distiller.distill_losses
    losses.loss_2 = dict(type='wsld_plugin.WSLDLoss', tau=2)
    assert loss_settings(cfg).tau == 2
    losses.clear()
    with pytest.raises(AnalysisError, match='must have a WSLDLoss'):
        loss_settings(cfg)
    for plain in (Config.fromfile(CONFIGS / 'ce_r18_digits.py'), Config()):
        with pytest.raises(AnalysisError, match=r'no model\.distiller'):
            loss_settings(plain)


@pytest.mark.parametrize('wrapper, labels', [
    (dict(type='RepeatDataset', dataset='digits', times=2), 2 * [0, 1, 2]),
    (dict(type='MixedDataset', labelled='digits', unlabelled='digits',
          ratio=1), [0, 1, 2, -100, -100, -100])])
def test_training_samples_are_read_as_those_of_val(wrapper, labels):
    cfg = Config.fromfile(TINY)
    digits = cfg.train_dataloader.dataset
    digits.indices = 3
    cfg.train_dataloader.dataset = {
        key: digits if value == 'digits' else value
        for key, value in wrapper.items()}
    loader = evaluation_loader(cfg, 'train')
    (batch, ), (same, ) = list(loader), list(loader)
    # No crop at random, and in order.
    for left, right in zip(batch['inputs'], same['inputs']):
        assert torch.equal(left, right)
    assert [int(s.gt_label) for s in batch['data_samples']] == labels
    with pytest.raises(AnalysisError, match='split must be'):
        evaluation_loader(cfg, 'dev')


def test_training_samples_of_a_cached_teacher_are_read_once():
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits-cached.py')
    assert len(evaluation_loader(cfg, 'train').dataset) == 100


def test_networks_see_what_they_were_trained_on():
    cfg = Config.fromfile(CONFIGS / 'ce_r18_digits.py')
    weights = build(cfg.model).state_dict()
    # Where mmpretrain's own configs have it.
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.mean = [1.0, 2.0, 3.0]
    network = student_network(cfg, dict(state_dict=weights), 'student')
    assert network.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]


def test_teacher_of_a_cache_is_the_one_that_answered(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits-cached.py')
    path = tmp_path / 'teacher.pth'
    expected = build(cfg.model.teacher.teacher).state_dict()
    torch.save(expected, path)
    cfg.model.teacher.teacher_ckpt = str(path)
    found = teacher_network(cfg, {}, 'student').state_dict()
    assert all(torch.equal(found[k].cpu(), expected[k]) for k in expected)
    cfg.model.teacher.teacher_ckpt = None
    with pytest.raises(AnalysisError, match='_ckpt is not set'):
        teacher_network(cfg, dict(state_dict={}), 'student')


def test_picture_is_drawn_in_its_colours():
    blue_first = torch.tensor([[[255.]], [[1.]], [[-3.]]])
    assert picture(blue_first, True).tolist() == [[[0, 1, 255]]]


def untrained(folder):
    """The tiny distillation on 6 scans, and a checkpoint of it."""
    cfg = Config.fromfile(TINY)
    cfg.val_dataloader.dataset.indices = 6
    path = folder / 'a, b <i>$x^$.pth'
    torch.save(build(cfg.model).state_dict(), path)
    return cfg, path


def test_names_are_shown_as_they_are(tmp_path):
    cfg, path = untrained(tmp_path)
    cfg.val_dataloader.dataset.metainfo = dict(
        classes=['<script>', 'a|b', r'$\frac$', *7 * ['crane']])
    found = regularization_report(cfg, [path], out=tmp_path / 'out')
    page = found.page.read_text()
    for name in ('&lt;script&gt;', 'a|b', r'$\frac$', 'a, b &lt;i&gt;$x^$'):
        assert f'<td>{name}</td>' in page
    assert '<script' not in page and '<i>' not in page
    # It refers to nothing outside. Pictures' bytes may spell anything.
    page = re.sub(r'base64,[\w+/=]+', '', page)
    assert {*re.findall(r'(?:src|href|url)\W+(\w+)', page)} == {'data'}
    # Classes of one name are not one class.
    assert len(found.classes) == 6
    assert found.classes['samples'].sum() == len(found.samples) == 6
    share = found.samples['regularization'].mean()
    assert found.checkpoints['share (%)'].tolist() == [100 * share]
    assert not list((tmp_path / 'out').glob('*.part'))


@pytest.mark.parametrize('indices, message',
                         [(0, 'the split val cannot be read'),
                          (1, 'the split val has no sample that counts')])
def test_a_split_without_samples_is_refused(tmp_path, indices, message):
    cfg, path = untrained(tmp_path)
    cfg.val_dataloader.dataset.indices = indices
    # The label of the first sample.
    cfg.model.distiller.distill_losses.loss_wsld.ignore_index = 0
    with pytest.raises(AnalysisError, match=message):
        regularization_report(cfg, [path], out=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
