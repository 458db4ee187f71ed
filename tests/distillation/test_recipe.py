"""The configs of a call: complete, readable, and worth their epochs."""
import contextlib
import dataclasses
import json

import pytest
import torch
from faults import differing
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner

from wsld_plugin.caching import build_cache
from wsld_plugin.datasets import read_folder, write_lists
from wsld_plugin.distillation import Training, run_trainings
from wsld_plugin.distillation.recipe import (
    Recipe,
    caching_pays,
    default_batch_size,
    default_size,
    distillation_config,
    student_config,
    teacher_config,
    teacher_model,
)
from wsld_plugin.distillation.schedule import network_traits, schedule
from wsld_plugin.losses import WSLDLoss
from wsld_plugin.models import classifier, find_network


@pytest.fixture(scope='module')
def recipe(pictures, tmp_path_factory):
    """Two epochs."""
    folder, lists = read_folder(pictures), tmp_path_factory.mktemp('lists')
    write_lists(folder, lists)
    return Recipe(folder, lists, 'resnet8', epochs=2, teacher_epochs=1,
                  batch_size=8, size=32, workers=1)


@pytest.fixture(scope='module')
def teacher(recipe):
    """Its config for a distillation, and its weights."""
    source = find_network('resnet8@none')
    run = Training(
        teacher_config(recipe, source, 'scratch'), recipe.lists / 'teacher')
    run_trainings([run])
    return teacher_model(recipe, [source]), run.checkpoint


@pytest.mark.parametrize('kind', ['student', 'online', 'cached'])
def test_the_written_file_trains_as_the_call_does(kind, recipe, teacher,
                                                  tmp_path, call_tool):
    def make(seed):
        chosen = dataclasses.replace(recipe, seed=seed)
        if kind == 'student':
            return student_config(chosen)
        cache = tmp_path / f'cache{seed}' if kind == 'cached' else None
        cfg = distillation_config(chosen, *teacher, 4.0, 2.0, cache=cache)
        if cache:
            build_cache(Config(cfg.to_dict()))
        return cfg

    runs = [Training(make(seed), tmp_path / f'run{seed}')
            for seed in range(1 + (kind == 'student'))]
    run_trainings(runs)
    file = tmp_path / 'config.py'
    runs[0].cfg.dump(file)
    assert '_base_' not in file.read_text()
    assert Config.fromfile(file).to_dict() == runs[0].cfg.to_dict()
    call_tool('train.py', file, '--work-dir', tmp_path / 'tool')
    assert not differing(tmp_path / 'tool/epoch_2.pth', runs[0].checkpoint)
    # Another seed, another training.
    assert all(differing(run.checkpoint, runs[0].checkpoint)
               for run in runs[1:])


def test_trials_share_the_cache_of_the_run(recipe, teacher, tmp_path):
    run, trial = (
        distillation_config(
            recipe, *teacher, tau, 1.0, epochs, cache=tmp_path / 'cache')
        for tau, epochs in ((2.0, None), (8.0, 1)))
    build_cache(Config(run.to_dict()))
    run_trainings([Training(trial, tmp_path / 'trial')])
    # A whole training of its own.
    assert trial.param_scheduler[-1].end * 2 == run.param_scheduler[-1].end
    assert trial.train_dataloader == run.train_dataloader


def test_a_teacher_is_tuned_in_two_phases(recipe, tmp_path):
    longer = dataclasses.replace(recipe, teacher_epochs=3)
    source = find_network('resnet8@none')
    start = Training(teacher_config(longer, source, 'head'), tmp_path / 'head')
    run_trainings([start])
    whole = teacher_config(longer, source, 'all', start.checkpoint)
    assert (start.epochs, whole.train_cfg.max_epochs) == (1, 2)
    # As long as no rate has moved it, the second begins where the first ended.
    whole.optim_wrapper.optimizer.lr = 0.0
    run = Training(whole, tmp_path / 'all')
    run_trainings([run])
    moved = differing(run.checkpoint, start.checkpoint)
    assert {key.split('.')[-1] for key in moved} == {
        'running_mean', 'running_var', 'num_batches_tracked'}


@pytest.mark.parametrize(
    'student', ['wrn-16-2', 'mobilenet-v3-small', 'vgg11'])
def test_the_loss_gets_logits_and_labels_of_any_head(student, recipe, teacher):
    size = 224 if student == 'vgg11' else 32
    cfg = distillation_config(
        dataclasses.replace(recipe, student=student, size=size), *teacher,
        3.0, 0.5)
    model = MODELS.build(cfg.model)
    model.train()
    model.student.eval()
    model.teacher.eval()
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    data = model.data_preprocessor(next(iter(loader)), True)
    found = model(**data, mode='loss')['distill.loss_wsld']
    labels = torch.cat([one.gt_label for one in data['data_samples']])
    expected = WSLDLoss(3.0, 0.5)(
        model.student(data['inputs'], mode='tensor'),
        model.teacher(data['inputs'], mode='tensor'), labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('count', [1, 7, 8, 9, 11, 12, 13, 16, 17, 160])
@pytest.mark.parametrize('epochs', [1, 3, 30])
def test_rates_end_with_the_training(count, epochs, recipe):
    rows = (recipe.folder.splits['train'] * 9)[:count]
    short = dataclasses.replace(
        recipe, epochs=epochs, folder=dataclasses.replace(
            recipe.folder, splits=dict(recipe.folder.splits, train=rows)))
    cfg = student_config(short)
    total = cfg.param_scheduler[-1].end
    loader = cfg.train_dataloader
    last = count % loader.batch_size
    # Of the last batch, less than half of one is left out.
    assert loader.drop_last == (last < 4 and count >= 8)
    pairs = student_config(dataclasses.replace(short, batch_size=2))
    # One picture is nothing for BatchNorm.
    assert pairs.train_dataloader.drop_last == (count > 1)
    steps = sum(1 for _ in torch.utils.data.DataLoader(
        range(count), loader.batch_size, drop_last=loader.drop_last))
    assert total == epochs * steps
    rates = rates_of(cfg, total)
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(cfg.optim_wrapper.optimizer.lr)
    assert top <= max(2, total / 10)
    assert rates[:top + 1] == sorted(rates[:top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert total < 20 or rates[-1] < 0.01 * max(rates)
    interval = cfg.train_cfg.val_interval
    assert 1 <= -(-epochs // interval) <= 12
    assert cfg.default_hooks.checkpoint.interval == interval


def rates_of(cfg, total):
    """The learning rate of each iteration."""
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, cfg.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(one, optimizer=optimizer))
                  for one in cfg.param_scheduler]
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for one in schedulers:
            one.step()
    return rates


def test_optimizers_and_precision_fit_the_network(recipe):
    pixels = ((120., ) * 3, (60., ) * 3)
    for name, size, expected in (('resnet18', 32, (False, True)),
                                 ('vgg11', 224, (True, False)),
                                 ('vit-base-p16', 224, (True, True))):
        assert network_traits(classifier(name, 3, *pixels), size) == expected
    for batch, more in ((16, 0.25), (64, 1), (128, 2), (2**14, 8)):
        sgd, adam = (
            schedule(attention, 'all', 1, 9, batch, 'float32')['optim_wrapper']
            for attention in (False, True))
        assert sgd['optimizer']['lr'] == pytest.approx(0.01 * more, rel=1e-2)
        assert adam['optimizer']['lr'] == pytest.approx(
            5e-5 * more**0.5, rel=1e-2)
        assert adam['paramwise_cfg']['norm_decay_mult'] == 0
    # All weights in one kernel, where torch has it.
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    with contextlib.suppress(RuntimeError, TypeError):
        torch.optim.SGD([weight], 1.0, fused=True).step()
    fused = weight.item() == -1
    assert all(one['optimizer'].get('fused', False) is fused
               for one in (sgd, adam))
    # Its init_cfg names no weights, but how to draw them.
    deit = dataclasses.replace(
        recipe, student='deit-tiny', size=224, batch_size=64)
    assert student_config(deit).optim_wrapper.optimizer.lr == 5e-4
    half = schedule(False, 'scratch', 1, 9, 64, 'float16')['optim_wrapper']
    assert half['type'] == 'AmpOptimWrapper'
    assert half['loss_scale'] == 'dynamic'


def test_defaults_follow_the_folder(recipe, tmp_path):
    folder = recipe.folder

    def of(size, pictures=1):
        return dataclasses.replace(
            folder, size=size, splits=dict(train=[('a.png', 0)] * pictures))

    sizes = {8: 32, 32: 32, 40: 32, 64: 64, 100: 96, 224: 224, 3000: 224}
    assert {size: default_size(of(size), 'resnet8') for size in sizes} == sizes
    batches = {20: 8, 100: 8, 200: 16, 640: 64, 10**6: 64}
    assert {pictures: default_batch_size(of(32, pictures))
            for pictures in batches} == batches
    assert default_batch_size(of(32, 640), processes=4) == 16
    json.dumps(student_config(recipe).to_dict())
    assert caching_pays(recipe, 3, tmp_path)
    assert not caching_pays(recipe, 2, tmp_path)
    huge = dataclasses.replace(recipe, epochs=10**9)
    assert not caching_pays(huge, 10**10, tmp_path)
