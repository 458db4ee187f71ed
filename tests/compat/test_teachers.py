"""No wrong or missing file leaves a teacher random without a word."""
import inspect

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from tiny_training import config
from torch import Tensor

from wsld_plugin.checkpoints import CheckpointMismatchError, has_weights

Weights = dict[str, Tensor]


def build(cfg):
    return MODELS.build(dict(cfg, _scope_='mmpretrain'))


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def check_equal(module, weights):
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'teacher.pth'


@pytest.fixture
def cfg(path):
    """A training without any hook of ours that looks at the teacher."""
    cfg = config(str(path.parent))
    cfg.experiment_name = path.parent.name
    cfg.model.teacher_ckpt = str(path)
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    # What a child config leaves of ours.
    cfg.custom_hooks = [dict(type='FastStepHook')]
    return cfg


@pytest.fixture
def weights(cfg):
    torch.manual_seed(3)
    return build(cfg.model.teacher).state_dict()


@pytest.mark.parametrize('change, complaint', [
    (lambda w: {key: w[key] for key in w if key != 'head.fc.bias'},
     'missing keys .*head.fc.bias'),
    (lambda w: {**w, 'more': torch.zeros(1)}, 'unexpected key .*more'),
    (lambda w: {**w, 'head.fc.bias': torch.zeros(11)}, 'size mismatch'),
    (lambda w: {**prefixed('architecture.', w), 'teacher.x': torch.zeros(1)},
     "prefix='architecture.' .the student. or prefix='teacher.'")])
def test_file_that_does_not_fit_is_refused(change, complaint, cfg, weights,
                                           path):
    torch.save(dict(state_dict=change(weights)), path)
    with pytest.raises(CheckpointMismatchError, match=complaint) as error:
        Runner.from_cfg(cfg)
    said = str(error.value)
    assert said.startswith(f'model.teacher_ckpt={path} does not fit')
    assert "init_cfg=dict(type='Pretrained'" in said
    assert '\n' not in said and len(said) < 1300


@pytest.mark.parametrize('rename', [
    lambda w: prefixed('module.', w),
    lambda w: {key.partition('.')[2]: w[key] for key in w},
    lambda w: {key: w[key] for key in w if 'num_batches' not in key},
], ids=['wrapped', 'torchvision', 'old'])
def test_file_that_fits_is_loaded(rename, cfg, weights, path):
    torch.save(rename(weights), path)
    check_equal(build(cfg.model).teacher, weights)


def test_all_distillers_with_teachers_are_strict(cfg, weights, path):
    torch.save(prefixed('architecture.', weights), path)
    model = cfg.model
    model.type = 'mmrazor.FpnTeacherDistill'
    with pytest.raises(CheckpointMismatchError, match=r'model\.teacher_ckpt='):
        build(model)
    one = dict(build_cfg=model.teacher, ckpt_path=str(path))
    with pytest.raises(
            CheckpointMismatchError, match=r'model\.teachers\.ckpt_path='):
        build(dict(
            type='mmrazor.DataFreeDistillation', teachers=dict(one=one),
            architecture=model.architecture, generator=model.architecture,
            distiller=model.distiller, generator_distiller=model.distiller))


def test_mmrazor_by_itself_passes_over_it(cfg, weights, path):
    from mmrazor.models.algorithms.distill.configurable import (
        single_teacher_distill as module,
    )
    source = inspect.getsource(module)
    assert 'from mmengine.runner import load_checkpoint' in source, (
        'it loads teachers in another way: is the fix still needed?')
    torch.save(prefixed('architecture.', weights), path)
    teacher = build(cfg.model.teacher)
    before = {key: one.clone() for key, one in teacher.state_dict().items()}
    load_checkpoint(teacher, str(path))
    check_equal(teacher, before)


@pytest.mark.parametrize('pretrained', [True, False])
def test_pretrained_network_of_timm_stays_and_is_no_random_one(pretrained, cfg,
                                                               path, capsys):
    """For mmengine would call the network's own init_weights."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(3)
    torch.save(timm.create_model('resnet10t').state_dict(), path)
    cfg.model.teacher_ckpt = None
    cfg.default_hooks.checkpoint = None
    cfg.model.teacher = dict(
        type='TimmClassifier', model_name='resnet10t', pretrained=pretrained,
        pretrained_cfg_overlay=dict(file=str(path)))
    cfg.model.distiller.teacher_recorders.fc.source = 'model.fc'
    teacher = build(cfg.model).teacher
    assert has_weights(teacher) == pretrained
    teacher.init_weights()
    assert pretrained == torch.equal(
        teacher.model.conv1[0].weight, torch.load(path)['conv1.0.weight'])
    distiller = Runner.from_cfg(cfg).model
    distiller.init_weights()
    distiller.train()
    assert pretrained != (
        'teacher has random weights' in ''.join(capsys.readouterr()))


PART = dict(prefix='architecture.')  # as the error message says


@pytest.mark.parametrize('fields, warned', [
    ({}, True),
    ({'model.teacher.init_cfg': {}}, True),
    ({'model.teacher.init_cfg': PART}, False),
    # The head is left as random as it was.
    ({'model.teacher.backbone.init_cfg':
      dict(prefix='architecture.backbone.')}, True),
    ({'model.teacher_ckpt': 'own.pth'}, False),
    ({'load_from': 'own.pth'}, True),
    ({'load_from': 'part.pth'}, False),
    ({'model.teacher_trainable': True}, False),
])
def test_random_teacher_is_warned_of_whatever_the_hooks(fields, warned, cfg,
                                                        weights, path, capsys):
    for name, prefix in (('teacher', 'architecture.'), ('own', ''),
                         ('part', 'teacher.')):
        torch.save(prefixed(prefix, weights), path.with_stem(name))
    cfg.model.teacher_ckpt = None
    cfg.default_hooks.checkpoint = None
    for key, value in fields.items():
        if isinstance(value, dict):
            value = dict(value, type='Pretrained', checkpoint=str(path))
        elif isinstance(value, str):
            value = str(path.with_name(value))
        cfg.merge_from_dict({key: value})
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert capsys.readouterr().out.count('teacher has random weights') == (
        int(warned))
    fits = torch.equal(runner.model.teacher.backbone.conv1.weight,
                       weights['backbone.conv1.weight'])
    assert fits == ('model.teacher.backbone.init_cfg' in fields or not
                    (warned or runner.model.teacher_trainable))
