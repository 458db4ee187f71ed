"""mmseg's networks: shipped configs, training, tools; where it is installed.

The pipeline of docs/segmentation_pipeline.py runs on scenes of noise, with
networks of a few channels.
"""
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

import wsld_plugin  # noqa: F401
from wsld_plugin.analysis import regularization_report
from wsld_plugin.checkpoints import export_onnx, export_student
from wsld_plugin.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
LEAVES = sorted(path.stem for path in (CONFIGS / 'dense').glob('*.py'))
Call = Callable[..., None]
# Bases are found by their place, whatever is installed.
PAGE = (ROOT / 'docs' / 'segmentation_pipeline.py').read_text().replace(
    'wsld_plugin::', f'{CONFIGS}/')
SMALL = '''
def small(channels):
    return dict(
        backbone=dict(base_channels=channels, stem_channels=channels),
        decode_head=dict(in_channels=8 * channels, channels=8),
        auxiliary_head=dict(in_channels=4 * channels, channels=8))
model = dict(architecture=small(4), teacher=small(8), teacher_ckpt=None)
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=2))
'''

pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The page's pipeline, small, with scenes that are half unlabelled."""
    root = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    for split, sizes in (('train', [(180, 240)] * 4),
                         ('val', [(64, 96), (64, 96), (80, 64)])):
        for number, size in enumerate(sizes):
            scene = rng.integers(256, size=(*size, 3), dtype=np.uint8)
            mask = rng.integers(11, size=size, dtype=np.uint8)
            mask[:size[0] // 2] = 255
            for kind, array, ending in (('images', scene, 'jpg'),
                                        ('masks', mask, 'png')):
                path = root / kind / split / f'{number}.{ending}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / 'page.py').write_text(PAGE)
    text = f"_base_ = {str(root / 'page.py')!r}\n{SMALL}"
    for split in ('train', 'val', 'test'):
        text += (f'{split}_dataloader = dict(num_workers=0, dataset=dict('
                 f'data_root={str(root)!r}))\n')
    path = root / 'pipeline.py'
    path.write_text(text + 'train_dataloader.update(batch_size=2)\n')
    return path


@pytest.fixture(scope='module')
def trained(config, call_tool, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('dense')
    call_tool('train.py', config, '--work-dir', work_dir)
    return work_dir


@pytest.mark.parametrize('name', LEAVES)
def test_a_leaf_has_mmsegs_recipe(name):
    cfg = load_config(CONFIGS / 'dense' / f'{name}.py')
    net, = set(re.findall('(?:_)([a-z0-9]+)-r(?:101|18)', name))
    theirs = Config.fromstring(
        f'_base_ = "mmseg::{net}/{net}_r18-d8_4xb2-80k_cityscapes-512x1024'
        '.py"', '.py')
    for key in ('train_dataloader', 'val_dataloader', 'val_evaluator',
                'tta_model'):
        assert _plain(cfg[key]) == _plain(theirs[key]), key
    optimizer = _plain(theirs.optim_wrapper.optimizer)
    assert _plain(cfg.optim_wrapper.optimizer) == optimizer
    assert _plain(cfg.param_scheduler) == _plain(theirs.param_scheduler[0])
    assert cfg.train_cfg.max_iters == theirs.train_cfg.max_iters == 80000
    student, teacher = cfg.model.architecture, cfg.model.teacher
    assert (student.backbone.depth, teacher.backbone.depth) == (18, 101)
    assert student.pretrained and not teacher.pretrained
    assert f'/{net}_r101-d8_512x1024_80k_' in cfg.model.teacher_ckpt
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(dict(cfg.model, teacher_ckpt=None))
    for network in (model.architecture, model.teacher):
        assert network.decode_head.loss_decode.avg_non_ignore


def _plain(part):
    """Without the scopes that a base of another package is given."""
    if isinstance(part, dict):
        return {key: _plain(value) for key, value in part.items()
                if key != '_scope_'}
    return [*map(_plain, part)] if isinstance(part, (list, tuple)) else part


def test_the_loss_is_that_of_valid_pixels(config, tmp_path):
    cfg = load_config(config)
    cfg.update(work_dir=str(tmp_path), log_level='WARNING')
    runner = Runner.from_cfg(cfg)
    model = runner.model
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode='loss')
    calls = {from_student: model.distiller.get_record(
        'decode', from_student, data_idx=None) for from_student in
        (True, False)}
    student, labels = calls[True][:2]
    teacher = calls[False][0]
    assert student.shape == teacher.shape == (2, 11, 180, 240)
    valid = labels != 255
    assert 0 < valid.float().mean() < 0.8
    rows = [one.movedim(1, -1)[valid] for one in (student, teacher)]
    expected = model.distiller.distill_losses.loss_wsld(*rows, labels[valid])
    torch.testing.assert_close(losses['distill.loss_wsld'], expected)
    ce = torch.nn.functional.cross_entropy(rows[0], labels[valid])
    torch.testing.assert_close(losses['student.decode.loss_ce'], ce)


def test_the_page_trains_the_teacher(config):
    text = (ROOT / 'docs' / 'dense.md').read_text()
    code = re.search(r"```python\n(_base_ = 'seg.*?)```", text, re.DOTALL)[1]
    cfg = Config.fromstring(
        code.replace('segmentation_pipeline.py', str(config)), '.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert MODELS.build(cfg.model).backbone.depth == 34
    assert 'WSLDMonitorHook' not in str(cfg.default_hooks)


def test_it_trains_and_is_tested(trained, config, call_tool, capsys):
    log, = trained.glob('*/vis_data/scalars.json')
    lines = [*map(json.loads, log.read_text().splitlines())]
    wanted = {'distill.loss_wsld', 'wsld/regularization_ratio'}
    assert sum(wanted < line.keys() for line in lines) == 2
    for prefix in ('', 'teacher/'):
        assert any(f'{prefix}mIoU' in line for line in lines)
    call_tool('test.py', config, trained / 'iter_2.pth', '--work-dir',
              trained / 'test', '--show-dir', trained / 'shown')
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {
        'aAcc', 'mIoU', 'mAcc'}
    assert len([*trained.glob('shown/vis_data/vis_image/*.png')]) == 3


def test_the_student_goes_elsewhere(trained):
    from mmseg.apis import inference_model, init_model
    path, _ = export_student(str(trained / 'iter_2.pth'), f'{trained}/')
    meta = torch.load(path, weights_only=False)['meta']
    model = init_model(
        Config.fromstring(meta['cfg'], '.py'), str(path), device='cpu')
    scene = np.random.default_rng(1).integers(256, size=(64, 96, 3),
                                              dtype=np.uint8)
    assert inference_model(model, scene).pred_sem_seg.shape == (64, 96)
    if not hasattr(torch.export, 'Dim'):
        return
    onnx = export_onnx(str(trained / 'iter_2.pth'), f'{trained}/',
                       with_preprocessing=True)
    # The two of one size.
    assert onnx.images == 2
    assert onnx.equal_top1 == onnx.rows == 2 * 64 * 96


def test_its_pixels_are_analyzed(trained, config):
    report = regularization_report(
        load_config(config), [trained / 'iter_2.pth'], out=trained / 'report')
    _, maps = report.page.read_text().split('here are all of some</h2>')
    assert 'base64,' in maps and len(maps) > 10_000
    counted = report.checkpoints['samples'].item()
    # Three pictures; the unlabelled halves are left out.
    assert counted == 3 * 32 * 32 // 2
    assert set(report.classes['class']) <= set(load_config(config).classes)
