"""A teacher of other libraries' networks, in a distillation and alone."""
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

import wsld_plugin
from wsld_plugin.models import Teacher

ROOT = Path(__file__).parents[2]
STUDENT = dict(mean=[77.5, 80, 90], std=[82.3, 70, 60])
OTHER = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
MEAN, STD, OWN_MEAN, OWN_STD = (
    torch.tensor(one[key]).view(-1, 1, 1)
    for one in (STUDENT, OTHER) for key in ('mean', 'std'))


class Look(nn.Module):
    """Keeps the pictures that it gets."""

    def __init__(self, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        self.seen = x
        return self.fc(self.norm(x).mean((2, 3)))


def look(**fields):
    return dict(network=f'python:{__name__}.Look', num_classes=5, **fields)


def seen(teacher):
    return teacher.backbone.networks[0].network.seen


@pytest.mark.parametrize('rgb', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, None])
def test_a_member_gets_its_own_preprocessors_pixels(rgb, dtype):
    files = [torch.randint(256, (3, 12, 12)).byte() for _ in range(4)]
    # Files are BGR. This student may leave them so.
    inputs = dict({key: value if rgb else value[::-1]
                   for key, value in STUDENT.items()}, to_rgb=rgb)
    student, own = (
        ClsDataPreprocessor(**pixels)(dict(inputs=files))['inputs']
        for pixels in (inputs, dict(OTHER, to_rgb=True)))
    teacher = Teacher([look(**OTHER)], inputs=inputs)
    if dtype is None:
        # mmengine's mixed precision leaves pictures in float32.
        with torch.autocast('cpu', dtype=torch.bfloat16):
            teacher(student)
        dtype = torch.float32
    else:
        teacher.to(dtype)(student.to(dtype))
    assert seen(teacher).dtype == dtype
    if dtype == torch.float32:
        assert (seen(teacher) - own).abs().max() < 2e-6
        return
    # Made in float32 of what came in half precision, and rounded once.
    rgb_pictures = student if rgb else student.flip(1)
    pixels = rgb_pictures.to(dtype).float() * STD + MEAN
    own = ((pixels - OWN_MEAN) / OWN_STD).to(dtype)
    assert (seen(teacher) == own).float().mean() > 0.99


def test_what_is_the_students_is_not_computed():
    inputs = torch.randn(2, 3, 12, 12)
    for member in (look(), look(size=12, **STUDENT)):
        teacher = Teacher([member], inputs=STUDENT)
        teacher(inputs)
        assert seen(teacher) is inputs


def test_a_member_gets_its_own_size():
    pixels = torch.randint(256, (2, 3, 12, 12)).float()
    teacher = Teacher([look(size=8, **OTHER)], inputs=STUDENT)
    teacher((pixels - MEAN) / STD)
    own = F.interpolate(pixels, (8, 8), mode='bilinear', antialias=True)
    assert (seen(teacher) - (own - OWN_MEAN) / OWN_STD).abs().max() < 5e-6


@pytest.mark.parametrize('combine', ['probabilities', 'logits'])
def test_members_are_averaged(combine):
    teacher = Teacher([look(), look()], combine=combine, weights=[3, 1])
    inputs = torch.randn(4, 3, 6, 6)
    one, two = (network(inputs).double()
                for network in teacher.backbone.networks)
    logits = teacher(inputs)
    if combine == 'logits':
        assert torch.allclose(logits.double(), 0.75 * one + 0.25 * two)
    else:
        mean = 0.75 * one.softmax(1) + 0.25 * two.softmax(1)
        assert torch.allclose(logits.double().exp(), mean)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    loss = teacher(inputs, samples, mode='loss')['loss']
    assert torch.allclose(loss.double(), F.cross_entropy(
        logits.double(), torch.arange(4)))
    guesses = teacher(inputs, samples, mode='predict')
    assert [one.pred_label.item() for one in guesses] == (
        logits.argmax(1).tolist())
    assert [one.gt_label.item() for one in guesses] == [0, 1, 2, 3]


@pytest.mark.parametrize('fields, said', [
    (dict(combine='mean'), 'combine must'),
    (dict(trainable='none'), 'trainable must'),
    (dict(weights=[1, 2]), 'as many'), (dict(weights=[-1]), 'positive'),
    (dict(members=[]), 'as many'),
    (dict(members=[look(**OTHER)], inputs=None), 'inputs those'),
    (dict(members=[look(mean=[1, 2, 3])]), 'needs both')])
def test_wrong_arguments(fields, said):
    with pytest.raises(ValueError, match=said):
        Teacher(**dict(dict(members=[look()], inputs=STUDENT), **fields))


def test_heads_alone_train():
    teacher = Teacher([look(), look()], trainable='head').train()
    before = {key: one.clone() for key, one in teacher.state_dict().items()}
    teacher(torch.randn(4, 3, 6, 6)).sum().backward()
    assert {name for name, one in teacher.named_parameters()
            if one.grad is not None} == {
        f'backbone.networks.{i}.network.fc.{key}'
        for i in (0, 1) for key in ('weight', 'bias')}
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def distillation(tmp_path, **fields):
    cfg = Config.fromfile(ROOT / 'tests' / 'tools' / 'tiny_distillation.py')
    cfg.merge_from_dict({
        'work_dir': str(tmp_path), 'experiment_name': tmp_path.name,
        'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,
        'train_dataloader.batch_size': 8, 'train_cfg.max_epochs': 1,
        'train_dataloader.dataset.indices': 16,
        'val_dataloader.dataset.indices': 16, 'log_level': 'INFO'})
    cfg.model.architecture.train_cfg = None
    cfg.model.teacher = dict(
        type='Teacher', inputs=cfg.model.architecture.data_preprocessor,
        members=[dict(network='timm:resnet10t', num_classes=10, size=40,
                      **OTHER)], **fields)
    return cfg


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_it_teaches_with_all_hooks(dtype, tmp_path):
    cfg = distillation(tmp_path)
    teacher = MODELS.build(cfg.model.teacher)
    cfg.model.teacher_ckpt = str(tmp_path / 'teacher.pth')
    torch.save(teacher.state_dict(), cfg.model.teacher_ckpt)
    cfg.custom_hooks = [dict(type='FastStepHook', teacher_dtype=dtype)]
    if dtype:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype)
    wsld_plugin.compat.prepare_amp(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    log, = tmp_path.glob('*/*.log')
    assert 'teacher folded' in log.read_text()
    assert 'random weights' not in log.read_text()
    assert 'teacher/accuracy/top1' in runner.message_hub.get_info(
        'teacher_metrics')
    for key, value in runner.model.teacher.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[key]), key
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert not [key for key in saved['state_dict'] if 'teacher' in key]
    assert (tmp_path / 'epoch_1_student.pth').is_file()

    cfg = cfg.copy()
    cfg.merge_from_dict(dict(resume=True, experiment_name=f'{tmp_path}2'))
    cfg.train_cfg.max_epochs = 2
    Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('file', [True, False])
def test_only_what_is_random_is_called_so(file, tmp_path):
    cfg = distillation(tmp_path)
    member, = cfg.model.teacher.members
    network = Teacher([dict(member)], STUDENT).backbone.networks[0].network
    torch.save(network.state_dict(), tmp_path / 'timm.pth')
    second = dict(member, weights=str(tmp_path / 'timm.pth'))
    cfg.model.teacher.members = [second] if file else [member, second]
    Runner.from_cfg(cfg).train()
    log, = tmp_path.glob('*/*.log')
    count = len([*network.parameters()])
    assert (f'random weights: {count} of its' in log.read_text()) != file
    assert ('random weights' in log.read_text()) != file


@pytest.mark.parametrize(
    'name', [path.stem for path in (ROOT / 'configs' / 'teachers').iterdir()
             if path.suffix == '.py'])
def test_shipped_configs_take_a_step(name, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    cfg = Config.fromfile(ROOT / 'configs' / 'teachers' / f'{name}.py').model
    assert cfg.teacher_ckpt is None
    if 'hf' in name:
        transformers = pytest.importorskip('transformers')
        transformers.ViTConfig(num_hidden_layers=1).save_pretrained(tmp_path)
        cfg.teacher.members[0].network = f'hf:{tmp_path}'
    monkeypatch.setitem(sys.modules, 'my_networks',
                        SimpleNamespace(network=Look))
    for member in cfg.teacher.members:
        assert member.pop('weights')
    model = MODELS.build(dict(cfg, _scope_='mmpretrain'))
    data = model.data_preprocessor(dict(
        inputs=[torch.randint(256, (3, 64, 64)).byte() for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in range(2)]), True)
    losses = model(**data, mode='loss')
    assert losses['distill.loss_wsld'] > 0
    losses['distill.loss_wsld'].backward()
    assert model.architecture.head.fc.weight.grad.abs().max() > 0
