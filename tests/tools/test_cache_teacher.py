"""cache_teacher.py: builds, resumes, verifies and refuses; then training."""
from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from wsld_plugin.caching import TeacherCache, TeacherCacheError, build_cache
from wsld_plugin.checkpoints import read_checkpoint
from wsld_plugin.datasets import DigitsDataset
from wsld_plugin.functional import wsld_weight

HERE = Path(__file__).parent
CACHED = HERE / 'tiny_cached.py'

Call = Callable[..., None]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose answers differ from picture to picture."""
    folder = tmp_path_factory.mktemp('teacher')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(Config.fromfile(CACHED).model.teacher.teacher)
    torch.manual_seed(0)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    nn.init.normal_(teacher.head.fc.weight)
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    return folder


def options(folder: Path, cache: str, **others: Any) -> list[str]:
    values = {
        'model.teacher.cache': folder / cache,
        'model.teacher.teacher_ckpt': folder / 'teacher.pth',
        **others
    }
    return ['--cfg-options', *(f'{key}={val}' for key, val in values.items())]


def message(call: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as leaving:
        call()
    line = leaving.value.code
    assert isinstance(line, str) and '\n' not in line
    return line


@pytest.fixture(scope='module')
def cache(folder: Path, call_tool: Call) -> Path:
    call_tool('cache_teacher.py', CACHED, *options(folder, 'cache'))
    return folder / 'cache'


def content(cache: Path) -> tuple[bytes, bytes]:
    return tuple((cache / name).read_bytes()
                 for name in ('rows.bin', 'manifest.json'))


def test_manifest_tells_what_it_is(cache: Path) -> None:
    manifest = TeacherCache(cache).manifest
    assert [manifest[key] for key in ('count', 'samples', 'views', 'seed')
            ] == [96, 32, 3, 0]
    assert manifest['classes'] == list('0123456789')
    assert manifest['teacher']['backbone']['depth'] == 34
    assert manifest['preprocessor']['mean'] == [77.5] * 3
    # As in the config, not as building leaves it.
    assert 'type' not in manifest['teacher']['data_preprocessor']
    assert sorted(path.name for path in cache.iterdir()) == [
        'lock', 'manifest.json', 'rows.bin']


def test_finished_cache_is_verified_and_left_alone(
        cache: Path, folder: Path, call_tool: Call,
        capsys: pytest.CaptureFixture) -> None:
    before = content(cache)
    call_tool('cache_teacher.py', CACHED, '--verify', 30,
              *options(folder, 'cache', **{'train_dataloader.batch_size': 5}))
    lines = capsys.readouterr().out.splitlines()
    assert '96 rows of 40 bytes' in lines
    assert '30 rows computed again: largest difference' in lines[-2]
    assert lines[-1] == str(cache)
    assert content(cache) == before


def test_damage_is_mended_and_wrong_answers_are_found(
        cache: Path, folder: Path, call_tool: Call,
        capfd: pytest.CaptureFixture) -> None:
    wrong = shutil.copytree(cache, folder / 'wrong')
    build = partial(call_tool, 'cache_teacher.py', CACHED, '--verify', 96,
                    *options(folder, 'wrong'))
    with (wrong / 'rows.bin').open('r+b') as file:
        file.seek(500)
        file.write(b'x')
    build()
    assert '1 of 96 rows' in capfd.readouterr().err
    assert content(wrong) == content(cache)
    # As another teacher would have written it.
    held = TeacherCache(wrong)
    rows = held.rows(range(96)).copy()
    rows['logits'][:, 3] += np.float16(4)
    held.write(range(96), **{name: rows[name] for name in rows.dtype.names})
    line = message(build)
    assert re.search(r'wrong differs from the teacher by (3\.9|4)', line)


def first_loss(cfg: Config, name: str, work_dir: Path) -> tuple:
    """Losses of the first step, with the weights of the loss."""
    cfg.work_dir = str(work_dir / name)
    cfg.experiment_name = f'{work_dir.name}_{name}'
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    model = runner.model
    model.init_weights()
    model.load_state_dict(
        torch.load(cfg.student, weights_only=True), strict=False)
    model.train()
    runner.train_dataloader.sampler.set_epoch(4)
    batch = next(iter(runner.train_dataloader))
    for module in model.modules():
        if 'drop_prob' in vars(module):
            module.drop_prob = 0.0
    data = model.data_preprocessor(batch, True)
    torch.manual_seed(0)
    with torch.no_grad():
        losses = model(**data, mode='loss')
    teacher, student = (
        model.distiller.get_record('fc', from_student=who)
        for who in (False, True))
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    return losses, teacher, wsld_weight(student, teacher, labels)


def online(folder: Path) -> Config:
    """The same data with the teacher itself."""
    cfg = Config.fromfile(CACHED)
    teacher = cfg.model.teacher
    cfg.model.teacher = teacher.teacher
    cfg.model.teacher_ckpt = str(folder / 'teacher.pth')
    return cfg


def test_same_losses_and_weights_as_online(cache: Path, folder: Path) -> None:
    cfg = Config.fromfile(CACHED)
    cfg.model.teacher.update(
        cache=str(cache), teacher_ckpt=str(folder / 'teacher.pth'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        student = MODELS.build(cfg.model.architecture)
    torch.save({f'architecture.{key}': value
                for key, value in student.state_dict().items()},
               folder / 'student.pth')
    results = []
    for name, config in (('cached', cfg), ('online', online(folder))):
        config.student = str(folder / 'student.pth')
        results.append(first_loss(config, name, folder))
    (losses, logits, weights), (expected, truth, exact) = results
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses['student.loss'],
                               expected['student.loss'], rtol=0, atol=0)
    assert (weights - exact).abs().max() < 1e-6
    assert exact.std() > 0.05
    gap = logits.log_softmax(1) - truth.log_softmax(1)
    assert 0 < gap.abs().max() < 2e-2


def test_training_validates_saves_and_resumes(
        cache: Path, folder: Path, call_tool: Call) -> None:
    work_dir = folder / 'run'
    arguments = (CACHED, '--work-dir', work_dir)
    call_tool('train.py', *arguments,
              *options(folder, 'cache', **{'train_cfg.max_epochs': 1}))
    log, = work_dir.glob('*/*.log')
    assert 'The teacher is not validated' in log.read_text()
    assert 'random weights' not in log.read_text()
    call_tool('train.py', *arguments, '--resume',
              *options(folder, 'cache', **{'train_cfg.max_epochs': 2}))
    weights = read_checkpoint(str(work_dir / 'epoch_2.pth'))['state_dict']
    assert {key.split('.')[0] for key in weights} == {'architecture'}
    scalars = max(work_dir.glob('*/vis_data/scalars.json')).read_text()
    lines = [json.loads(line) for line in scalars.splitlines()]
    assert all(np.isfinite(line['loss']) for line in lines if 'loss' in line)


def fork(target: Callable[[], None]) -> BaseProcess:
    """Start a process that has imported all it needs."""
    process = multiprocessing.get_context('fork').Process(target=target)
    process.start()
    return process


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_two_processes_make_the_same_bytes(cache: Path, folder: Path,
                                           call_tool: Call) -> None:
    port = free_port()

    def build(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
            LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        call_tool('cache_teacher.py', CACHED, '--launcher', 'pytorch',
                  *options(folder, 'two'))

    processes = [fork(partial(build, rank)) for rank in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert content(folder / 'two') == content(cache)


def test_killed_and_resumed(cache: Path, folder: Path, call_tool: Call,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    killed = folder / 'killed' / 'rows.bin'
    write = TeacherCache.write

    def build() -> None:
        call_tool('cache_teacher.py', CACHED, *options(folder, 'killed'))

    def once(self: TeacherCache, *args: Any, **fields: Any) -> None:
        write(self, *args, **fields)
        time.sleep(600)  # It is killed before.

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, 'write', once)
        process = fork(build)
    while process.is_alive() and not (killed.exists()
                                      and any(killed.read_bytes())):
        time.sleep(0.01)
    # Meanwhile no other builder gets in.
    line = message(build)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 'another process is making the teacher cache' in line
    with pytest.raises(TeacherCacheError, match='is not finished'):
        TeacherCache(folder / 'killed')
    before = killed.read_bytes()
    assert 0 < len(before.rstrip(b'\0')) < 96 * 40
    build()
    assert content(folder / 'killed') == content(cache)


def test_teacher_without_answers_is_told(folder: Path,
                                         call_tool: Call) -> None:
    weights = torch.load(folder / 'teacher.pth', weights_only=True)
    weights['head.fc.bias'][3] = float('nan')
    torch.save(weights, folder / 'nan.pth')
    line = message(lambda: call_tool(
        'cache_teacher.py', CACHED, *options(
            folder, 'nan', **{'model.teacher.teacher_ckpt':
                              folder / 'nan.pth'})))
    assert "the teacher's logits for row 0 are not finite" in line
    assert not (folder / 'nan').exists()


@DATASETS.register_module()
class OddLabels(DigitsDataset):
    """Scans, of which the sixth is not labelled as the others are."""

    def __init__(self, label: Any, **kwargs: Any) -> None:
        self.label = label
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        scans = super().load_data_list()
        scans[5]['gt_label'] = self.label
        return scans


@pytest.mark.parametrize('label', [-1, 10, 255])
def test_labels_that_are_none(label: int, folder: Path) -> None:
    cfg = Config.fromfile(CACHED)
    cfg.model.teacher.update(cache=str(folder / f'label{label}'),
                             teacher_ckpt=str(folder / 'teacher.pth'))
    cfg.train_dataloader.dataset.dataset.update(
        type='OddLabels', label=label)
    with pytest.raises(TeacherCacheError, match=f'row 5 has gt_label {label}'):
        build_cache(cfg)


@MODELS.register_module()
class AnyTeacher(BaseModel):
    """Takes what a CachedTeacher takes, and is none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.head = nn.Module()
        self.head.fc = nn.Identity()

    def forward(self, inputs: Any, **kwargs: Any) -> Any:
        return inputs


@DATASETS.register_module()
def just_scans(dataset: dict, views: int) -> Any:
    """Takes what a SeededViews takes, and is none."""
    return DATASETS.build(dataset)


REFUSED = {
    'model.teacher_norm_eval is False': {'model.teacher_norm_eval': False},
    'model.teacher_trainable is True': {'model.teacher_trainable': True},
    'has batch augments': {
        'model.architecture.train_cfg.augments.type': 'Mixup',
        'model.architecture.train_cfg.augments.alpha': 0.5,
    },
    'expected 1: model.teacher=dict': {'model.teacher.type': 'AnyTeacher'},
    'teacher_ckpt=.* does not fit': {'model.teacher.teacher.head.in_channels':
                                     32},
    'nowhere.pth': {'model.teacher.teacher_ckpt': 'nowhere.pth'},
    'source=backbone.conv1: it put out no logits of shape': {
        'model.teacher.source': 'backbone.conv1',
        'model.distiller.teacher_recorders.fc.source': 'backbone.conv1',
    },
    'train_dataloader.dataset must be a SeededViews': {
        'train_dataloader.dataset.type': 'just_scans'},
    'views must be an integer': {'train_dataloader.dataset.views': 0},
    'with seed=0, but the config now has 1': {
        'train_dataloader.dataset.seed': 1},
    'with count=96, but the config now has 93': {
        'train_dataloader.dataset.dataset.indices': 31},
    'train_dataloader.dataset: need at least one array': {
        'train_dataloader.dataset.dataset.indices': 0},
    'top_k=None, but the config now has 4': {},
}


@pytest.mark.parametrize('said', REFUSED)
def test_refusals(said: str, cache: Path, folder: Path,
                  call_tool: Call) -> None:
    before = content(cache)
    top_k = ['--top-k', 4] if 'top_k' in said else []
    line = message(lambda: call_tool(
        'cache_teacher.py', CACHED, *top_k,
        *options(folder, 'cache', **REFUSED[said])))
    assert line.startswith('cache_teacher.py: ')
    assert re.search(said, line), line
    assert content(cache) == before


def test_training_with_the_wrong_cache_is_told(cache: Path, folder: Path,
                                               call_tool: Call) -> None:
    line = message(lambda: call_tool(
        'train.py', CACHED, '--work-dir', folder / 'wrong run',
        *options(folder, 'cache', **{'train_dataloader.dataset.seed': 1})))
    assert re.match(r'train\.py: the teacher cache .* fingerprint', line)


def test_top_k(folder: Path, call_tool: Call,
               capsys: pytest.CaptureFixture) -> None:
    call_tool('cache_teacher.py', CACHED, '--top-k', 4, '--verify', 96,
              *options(folder, 'top'))
    assert '96 rows computed again' in capsys.readouterr().out
    assert TeacherCache(folder / 'top').dtype.itemsize == 40
