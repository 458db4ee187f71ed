"""cache_teacher.py: builds, resumes, verifies and refuses; then training."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hook_tester import launch, shake
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from processes import TOOLS
from torch import nn

from wsld_plugin.caching import TeacherCache
from wsld_plugin.caching.storage import locked
from wsld_plugin.checkpoints import read_checkpoint
from wsld_plugin.datasets import DigitsDataset
from wsld_plugin.functional import wsld_weight

CACHED = Path(__file__).parent / 'tiny_cached.py'
RECORDER = 'model.distiller.teacher_recorders.fc.source'
Call = Callable[..., None]
Refusal = Callable[..., str]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and student whose answers differ from picture to picture."""
    folder = tmp_path_factory.mktemp('teacher')
    cfg = Config.fromfile(CACHED).model
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.teacher.teacher)
        student = MODELS.build(cfg.architecture)
    shake(teacher)
    nn.init.normal_(teacher.head.fc.weight)
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    torch.save(student.state_dict(), folder / 'student.pth')
    teacher.head.fc.bias.data[3] = float('nan')
    torch.save(teacher.state_dict(), folder / 'nan.pth')
    return folder


def arguments(folder: Path, cache: str, *args: object,
              **others: Any) -> list[object]:
    """Of a tool for the cache of that name, with options by short names."""
    values = {'T.cache': folder / cache,
              'T.teacher_ckpt': folder / 'teacher.pth', **others}
    return [CACHED, *args, '--cfg-options', *(
        f'{key}={val}'.replace('T.', 'model.teacher.', 1).replace(
            'D.', 'train_dataloader.dataset.', 1)
        for key, val in values.items())]


@pytest.fixture(scope='module')
def cache(folder: Path, call_tool: Call) -> Path:
    call_tool('cache_teacher.py', *arguments(folder, 'cache'))
    return folder / 'cache'


def content(cache: Path) -> list[bytes]:
    return [(cache / name).read_bytes()
            for name in ('rows.bin', 'manifest.json')]


def test_finished_cache_is_verified_and_left_alone(
        cache: Path, folder: Path, call_tool: Call,
        capsys: pytest.CaptureFixture) -> None:
    before = content(cache)
    call_tool('cache_teacher.py', *arguments(
        folder, 'cache', '--verify', 30,
        **{'train_dataloader.batch_size': 5}))
    *lines, verified, last = capsys.readouterr().out.splitlines()
    assert '96 rows of 40 bytes' in lines
    assert verified.startswith('30 rows computed again: largest difference')
    assert last == str(cache)
    assert content(cache) == before
    manifest = TeacherCache(cache).manifest
    assert manifest['preprocessor']['mean'] == [77.5] * 3
    # As in the config, not as building leaves it.
    assert 'type' not in manifest['teacher']['data_preprocessor']
    assert sorted(path.name for path in cache.iterdir()) == [
        'lock', 'manifest.json', 'rows.bin']


def test_damage_is_mended_and_wrong_answers_are_found(
        cache: Path, folder: Path, call_tool: Call, refusal: Refusal,
        capfd: pytest.CaptureFixture) -> None:
    wrong = shutil.copytree(cache, folder / 'wrong')
    verified = ('cache_teacher.py',
                *arguments(folder, 'wrong', '--verify', 96))
    with (wrong / 'rows.bin').open('r+b') as file:
        file.seek(500)
        file.write(b'x')
    with locked(wrong):
        assert 'another process is making the teacher cache' in (
            refusal(*verified))
    call_tool(*verified)
    assert '1 of 96 rows' in capfd.readouterr().err
    assert not len(TeacherCache(wrong).missing())
    # As another teacher would have written it.
    held = TeacherCache(wrong)
    rows = held.rows(range(96))
    rows['logits'][:, 3] += np.float16(4)
    held.write(range(96), **{name: rows[name] for name in rows.dtype.names})
    assert re.search(r'wrong differs from the teacher by (3\.9|4)',
                     refusal(*verified))


def test_same_losses_and_weights_as_online(cache: Path, folder: Path) -> None:
    results = []
    for name in ('cached', 'online'):
        cfg = Config.fromfile(CACHED)
        cfg.merge_from_dict({
            'model.teacher.cache': str(cache),
            'model.teacher.teacher_ckpt': str(folder / 'teacher.pth')})
        if name == 'online':
            cfg.model.teacher_ckpt = cfg.model.teacher.teacher_ckpt
            cfg.model.teacher = cfg.model.teacher.teacher
            cfg.model.teacher.backbone.drop_path_rate = 0.0
        cfg.work_dir = str(folder / name)
        cfg.experiment_name, cfg.log_level = f'{folder.name}_{name}', 'ERROR'
        cfg.model.architecture.backbone.drop_path_rate = 0.0
        cfg.model.architecture.init_cfg = dict(
            type='Pretrained', checkpoint=str(folder / 'student.pth'))
        runner = Runner.from_cfg(cfg)
        model = runner.model
        model.init_weights()
        model.train()
        runner.train_dataloader.sampler.set_epoch(4)
        data = model.data_preprocessor(next(iter(runner.train_dataloader)))
        torch.manual_seed(0)
        with torch.no_grad():
            losses = model(**data, mode='loss')
        teacher, student = (
            model.distiller.get_record('fc', from_student=who)
            for who in (False, True))
        labels = torch.cat([one.gt_label for one in data['data_samples']])
        results.append(
            (losses, teacher, wsld_weight(student, teacher, labels)))
    (losses, logits, weights), (expected, truth, exact) = results
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses['student.loss'],
                               expected['student.loss'], rtol=0, atol=0)
    assert (weights - exact).abs().max() < 1e-6
    assert exact.std() > 0.05
    gap = logits.log_softmax(1) - truth.log_softmax(1)
    assert 0 < gap.abs().max() < 2e-2


def test_training_validates_saves_and_resumes(
        cache: Path, folder: Path, call_tool: Call, refusal: Refusal) -> None:
    work_dir = folder / 'run'
    for epochs, resume in ((1, []), (2, ['--resume'])):
        call_tool('train.py', *arguments(
            folder, 'cache', '--work-dir', work_dir, *resume,
            **{'train_cfg.max_epochs': epochs}))
    log = min(work_dir.glob('*/*.log')).read_text()
    assert 'The teacher is not validated' in log
    assert 'random weights' not in log
    again = max(work_dir.glob('*/*.log')).read_text()
    assert 'resumed epoch: 1' in again and 'another teacher' not in again
    weights = read_checkpoint(str(work_dir / 'epoch_2.pth'))['state_dict']
    assert {key.split('.')[0] for key in weights} == {'architecture'}
    scalars = max(work_dir.glob('*/vis_data/scalars.json')).read_text()
    lines = [json.loads(line) for line in scalars.splitlines()]
    assert all(np.isfinite(line.get('loss', 0)) for line in lines)
    for changes, said in (
        ({'D.seed': 1}, 'fingerprint'),
        ({'model.teacher_norm_eval': False}, 'teacher_norm_eval is False'),
        ({'model.architecture.data_preprocessor.std': '[83.1,83.1,83.1]'},
         'data_preprocessor.std=')):
        assert said in refusal('train.py', *arguments(
            folder, 'cache', '--work-dir', work_dir, **changes))


def test_two_processes_make_the_same_bytes(cache: Path, folder: Path) -> None:
    launch(TOOLS / 'cache_teacher.py', *arguments(
        folder, 'two', '--launcher', 'pytorch'))
    assert content(folder / 'two') == content(cache)


@DATASETS.register_module()
def just_scans(dataset: dict, views: int) -> Any:
    """Takes what a SeededViews takes, and is none."""
    return DATASETS.build(dataset)


@DATASETS.register_module()
class OddLabel(DigitsDataset):
    """Scans, of which the sixth has a label that no digit has."""

    def load_data_list(self) -> list[dict]:
        scans = super().load_data_list()
        scans[5]['gt_label'] = 10
        return scans


REFUSED: dict[str, dict[str, Any]] = {
    'model.teacher_trainable is True': {'model.teacher_trainable': True},
    'has batch augments': {
        'model.architecture.train_cfg.augments.type': 'Mixup',
        'model.architecture.train_cfg.augments.alpha': 0.5},
    'teacher_ckpt=.* does not fit': {'T.teacher.head.in_channels': 32},
    'nowhere.pth': {'T.teacher_ckpt': 'nowhere.pth'},
    'logits for row 0 are not finite': {'T.teacher_ckpt': 'nan.pth'},
    'source=backbone.conv1: it put out no logits': {
        'T.source': 'backbone.conv1', RECORDER: 'backbone.conv1'},
    'no attribute `nothing`': {'T.source': 'nothing', RECORDER: 'nothing'},
    'dataset must be a SeededViews': {'D.type': 'just_scans'},
    'row 5 has gt_label 10, expected one of the teacher.s 10 classes': {
        'D.dataset.type': 'OddLabel', 'T.cache': 'odd'},
    'with seed=0, but the config now has 1': {'D.seed': 1},
    'with count=96, but the config now has 93': {'D.dataset.indices': 31},
    'train_dataloader.dataset: need at least one array': {
        'D.dataset.indices': 0},
    'top_k=None, but the config now has 4': {},
}


@pytest.mark.parametrize('said', REFUSED)
def test_refusals(said: str, cache: Path, folder: Path, refusal: Refusal,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = content(cache)
    top_k = ['--top-k', 4] if 'top_k' in said else []
    line = refusal('cache_teacher.py', *arguments(
        folder, 'cache', *top_k, **REFUSED[said]))
    assert re.search(said, line), line
    assert content(cache) == before
