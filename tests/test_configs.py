"""Every shipped config: what it says, what a child changes, that it runs."""
import inspect
import json
import pickle
import re
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmpretrain.apis.model import ModelHub
from mmpretrain.datasets import CIFAR100
from PIL import Image

from wsld_plugin.checkpoints import export_student, read_checkpoint
from wsld_plugin.models.networks import network

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs'
MAIN = 'wsld_r34_r18_in1k'
LEAVES = sorted(path.stem for path in FOLDER.glob('*.py'))
# Method, teacher if there is one, student, data set and departure.
NAME = re.compile(r'(?:ce|(kd|dkd|dist|wsld)_([a-z0-9-]+))_([a-z0-9-]+)_'
                  r'([a-z0-9]+)((?:-[a-z0-9]+)*)')
# Learning rate, weight decay, pictures a step and epochs; tau and weight.
RECIPES = {
    'in1k': (0.1, 1e-4, 8 * 32, 100, (2, 2.5)),
    'cifar100': (0.05, 5e-4, 64, 240, (4, 2.25)),
    'cifar10': (0.05, 5e-4, 64, 6, (4, 2.25)),
    'digits': (0.02, 1e-4, 25, 60, (4, 1)),
}
STEPS = dict(in1k=[30, 60, 90], cifar100=[150, 180, 210])
LOSSES = dict(kd='KLDivergence', wsld='WSLDLoss')


def load(name):
    return Config.fromfile(FOLDER / f'{name}.py')


def derive(name, text):
    return Config.fromstring(f'_base_ = "{FOLDER}/{name}.py"\n{text}', '.py')


def parse(name):
    method, teacher, student, data, suffix = NAME.fullmatch(name).groups()
    teacher, student = (word and re.sub(r'^r(\d)', r'resnet\1', word)
                        for word in (teacher, student))
    return method or 'ce', teacher, student, data, suffix


def differences(one, other, path=''):
    """Where two configs differ, by dotted path."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = {}
        for key in one.keys() | other.keys():
            found |= differences(
                one.get(key), other.get(key), f'{path}.{key}'.lstrip('.'))
        return found
    return {} if one == other else {path: (one, other)}


def compare(name, main):
    return differences(load(main).to_dict(), load(name).to_dict())


def build(cfg, registry=MODELS):
    return registry.build(dict(cfg, _scope_='mmpretrain'))


def make_runner(cfg, work_dir):
    # mmengine shares state between runs of one name.
    cfg.experiment_name = f'{work_dir.parent.name}_{work_dir.name}'
    cfg.log_level = 'WARNING'
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize('name', LEAVES)
def test_a_leaf_is_what_its_name_says(name):
    cfg = load(name)
    method, teacher, student, data, suffix = parse(name)
    # Nothing that a child could set in vain or replace without a thought.
    assert cfg.custom_hooks == []
    read = {*inspect.signature(Runner).parameters, 'custom_imports'}
    assert cfg.keys() - read == set()
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()

    lr, decay, batch, epochs, (tau, weight) = RECIPES[data]
    if data == 'cifar100' and student in ('shufflev1', 'shufflev2', 'mbv2'):
        lr = 0.01
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=decay,
        nesterov='evalbn' not in suffix))
    gpus = 8 if data == 'in1k' else 1
    assert cfg.train_dataloader.batch_size * gpus == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    epochs = {'ce_r34_digits': 12, 'ce_resnet20_cifar10': 24,
              'wsld_r34_r18_digits-unlabelled': 12}.get(name, epochs)
    assert cfg.train_cfg.max_epochs == epochs
    schedule = cfg.param_scheduler
    assert schedule == dict(
        type='MultiStepLR', by_epoch=True, milestones=STEPS[data],
        gamma=0.1) if data in STEPS else schedule[1].end == epochs

    model = holder = cfg.model
    student = network(student, data)
    if not teacher:
        assert model == student
        return
    # All samples are the divisor, a fifth has a label.
    student['head']['loss']['loss_weight'] *= 1 + 4 * ('unlabelled' in suffix)
    assert model.architecture == student
    if suffix.endswith('-cached'):
        assert model.teacher_ckpt is None
        holder = model.teacher
    assert holder.teacher == network(teacher, data)
    assert model.teacher_norm_eval == (
        data in ('digits', 'cifar10') or 'evalbn' in suffix)
    for field in ('distill_losses', 'loss_forward_mappings'):
        assert [*model.distiller[field]] == [f'loss_{method}']
    if method in LOSSES:
        more = {'unlabelled': 'teacher'} if 'unlabelled' in suffix else {}
        assert model.distiller.distill_losses[f'loss_{method}'] == dict(
            type=LOSSES[method], tau=tau, loss_weight=weight, **more)
    alone = f'ce_{NAME.fullmatch(name)[2]}_{data}'
    assert holder.teacher_ckpt == (
        ModelHub.get(f'{teacher}_8xb32_in1k').weights if data == 'in1k' else
        f'work_dirs/{alone}/epoch_{load(alone).train_cfg.max_epochs}.pth')


@pytest.mark.parametrize('name', [
    name for name in LEAVES
    if parse(name)[0] in ('kd', 'dkd', 'dist') or '-cached' in name])
def test_peers_differ_in_the_method_alone(name):
    method, *_, suffix = parse(name)
    if suffix:
        online = name[:-len('-cached')]
        changed = compare(name, online)
        assert changed.pop('train_dataloader.sampler.type') == (
            'DefaultSampler', 'ViewSampler')
        assert (load(name).train_dataloader.dataset.dataset ==
                load(online).train_dataloader.dataset)
        prefixes = ('model.teacher', 'train_dataloader.dataset.')
    else:
        main = re.sub('^[a-z]+', 'wsld', name)
        changed = compare(name, main)
        assert changed.pop('default_hooks.wsld_monitor')
        prefixes = ('model.distiller.', )
        # Nor does the student without a teacher.
        plain = compare('ce' + name[name.index('_', len(method) + 1):], main)
        assert {path for path in plain if path[:5] != 'model'} == {
            f'default_hooks.{hook}' for hook in (
                'frozen_teacher', 'validate_teacher', 'wsld_monitor')}
    assert [path for path in changed if not path.startswith(prefixes)] == []


@pytest.mark.parametrize('name', LEAVES)
def test_a_child_changes_what_it_names(name):
    method, teacher, *_ = parse(name)
    at = 'model.teacher' if '-cached' in name else 'model'
    options = {
        'model.architecture.head.num_classes': 7,
        f'{at}.teacher.head.num_classes': 7,
        f'{at}.teacher_ckpt': 'mine.pth',
        f'model.distiller.distill_losses.loss_{method}.loss_weight': 9,
    } if teacher else {'model.head.num_classes': 7}
    options['train_dataloader.batch_size'] = 3
    override = Config({})
    override.merge_from_dict(options)
    child = derive(name, override.pretty_text)
    changed = differences(load(name).to_dict(), child.to_dict())
    assert {key: new for key, (_, new) in changed.items()} == options


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Noise in the layouts of ImageNet, CIFAR-10 and CIFAR-100."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for split, data, size, count, classes in (
        ('train', 'in1k', 280, 8, 2), ('val', 'in1k', 280, 4, 2),
        ('train', 'cifar10', 32, 100, 10), ('val', 'cifar10', 32, 20, 10)):
        names = []
        for index in range(count):
            path = root / data / split / f'{index % classes}' / f'{index}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(
                256, size=(size, size, 3), dtype=np.uint8)).save(path)
            names.append(f'{path.parent.name}/{path.name} {index % classes}\n')
        meta = root / data / 'meta' / f'{split}.txt'
        meta.parent.mkdir(exist_ok=True)
        meta.write_text(''.join(names))
    folder = root / 'cifar100' / CIFAR100.base_folder
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for split in ('train', 'test'):
            (folder / split).write_bytes(pickle.dumps(dict(
                data=rng.integers(0, 256, (8, 3072), np.uint8),
                fine_labels=list(range(8)))))
            # Other pictures have other hashes.
            patch.setattr(CIFAR100, f'{split}_list', [[split, None]])
        yield root


def small_run(name, pictures, work_dir):
    """Overrides that make a shipped config run here, and nothing else."""
    _, teacher, _, data, suffix = parse(name)
    options = {
        'work_dir': str(work_dir), 'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0}
    train, val, test = (
        f'{split}_dataloader.dataset' for split in ('train', 'val', 'test'))
    if teacher:
        # There is no network where tests run.
        options['model.teacher_ckpt'] = None
    if suffix.endswith('-cached'):
        options |= {
            'model.teacher.teacher_ckpt': str(work_dir / 'teacher.pth'),
            'model.teacher.cache': str(work_dir / 'cache'),
            f'{train}.views': 1, f'{train}.dataset.indices': 4}
        train += '.dataset'
    if data == 'cifar10':
        train, val = f'{train}.dataset', f'{val}.dataset'
    if data != 'digits':
        options |= {f'{place}.data_root': str(pictures / data)
                    for place in (train, val, test)}
    return options


@pytest.mark.parametrize('name', LEAVES)
def test_it_builds_and_learns(name, pictures, tmp_path, call_tool):
    cfg = load(name)
    options = small_run(name, pictures, tmp_path)
    if name.endswith('-cached'):
        # Answers of a random teacher.
        random = build(load(name).model.teacher.teacher)
        torch.save(random.state_dict(), tmp_path / 'teacher.pth')
        call_tool('cache_teacher.py', FOLDER / f'{name}.py', '--cfg-options',
                  *(f'{key}={value}' for key, value in options.items()))
    cfg.merge_from_dict(options)
    runner = make_runner(cfg, tmp_path)
    model = runner.model
    data = model.data_preprocessor(
        next(iter(runner.train_dataloader)), training=True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert all(torch.isfinite(value) for value in losses.values())
    method, teacher, *_ = parse(name)
    assert [key for key in losses if key.startswith('distill')
            ] == ([f'distill.loss_{method}'] if teacher else [])
    # Every weight of the student takes part, so that DDP need not search for
    # those that do not.
    assert all(param.grad is not None for key, param in
               model.named_parameters() if not key.startswith('teacher.'))


@pytest.mark.parametrize('line,hooks', [
    ('custom_hooks = [dict(type="EMAHook")]',
     {'EMAHook', 'FrozenTeacherHook', 'ValidateTeacherHook',
      'WSLDMonitorHook'}),
    ('_base_.default_hooks.pop("wsld_monitor")',
     {'FrozenTeacherHook', 'ValidateTeacherHook'})])
def test_ones_own_hook_costs_none_of_ours(line, hooks, tmp_path):
    name = 'wsld_r34_r18_digits'
    cfg = derive(name, line)
    cfg.merge_from_dict(small_run(name, tmp_path, tmp_path))
    found = {type(hook).__name__ for hook in make_runner(cfg, tmp_path).hooks}
    known = load('_base_/runtime').default_hooks
    assert found - {hook.type for hook in known.values()} == {
        'RuntimeInfoHook', *hooks}


@pytest.mark.parametrize('example', [0, 1])
def test_the_pages_children_distil(example):
    page = (ROOT / 'docs' / 'migration.md').read_text()
    code = re.findall(r'```python\n(_base_ .*?)```', page, re.DOTALL)[example]
    cfg = Config.fromstring(code.replace('wsld_plugin::', f'{FOLDER}/'), '.py')
    cfg.model.pop('teacher_ckpt')
    model = build(cfg.model)
    assert type(model.architecture.backbone).__name__ == (
        'ResNet', 'MobileNetV1')[example]
    assert {part.head.fc.out_features for part in (
        model.architecture, model.teacher)} == {(7, 1000)[example]}


def test_cifar10_is_chosen_and_reported_on_other_pictures(pictures, tmp_path):
    name = 'wsld_resnet20_resnet8_cifar10'
    cfg = load(name)
    cfg.merge_from_dict(small_run(name, pictures, tmp_path))
    files = []
    for split in ('train', 'val', 'test'):
        built = build(cfg[f'{split}_dataloader'].dataset, DATASETS)
        files.append({Path(built.get_data_info(index)['img_path'])
                      for index in range(len(built))})
    assert [*map(len, files)] == [20, 4, 20]
    assert not files[0] & files[1]
    assert [{path.parents[1].name for path in split} for split in files
            ] == [{'train'}, {'train'}, {'val'}]


@pytest.mark.parametrize('switch', sorted(set(re.findall(
    r'`([a-z_]+\.[\w.]+=[^`]+)`',
    (ROOT / 'docs' / 'reproduction.md').read_text()))))
def test_switches_of_the_page_change_something(switch):
    cfg = load('kd_resnet56_resnet20_cifar100' if re.search(
        'loss_kd|padding|head', switch) else MAIN)
    before = cfg.to_dict()
    key, value = switch.split('=')
    cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    (path, (old, new)), = differences(before, cfg.to_dict()).items()
    # A list is compared as a whole.
    assert path == re.sub(r'\.\d\..*', '', key)
    # `eps` has a default that no config repeats.
    assert old is None or type(new) in (type(old), float)


def test_main_config_trains_and_leaves_mmpretrains_student(pictures, tmp_path,
                                                           call_tool):
    options = small_run(MAIN, pictures, tmp_path)
    options |= {'default_hooks.checkpoint.save_best': None,
                'default_hooks.logger.interval': 1}
    call_tool('train.py', FOLDER / f'{MAIN}.py',
              '--work-dir', options.pop('work_dir'), '--cfg-options',
              *(f'{key}={value}' for key, value in options.items()))
    log, = tmp_path.glob('*/vis_data/scalars.json')
    teacher, one, two, end = map(json.loads, log.read_text().splitlines())
    top = {'accuracy/top1', 'accuracy/top5'}
    assert set(teacher) == {f'teacher/{key}' for key in top} | {'step'}
    for step in (one, two):
        assert step['loss'] == pytest.approx(
            step['student.loss'] + step['distill.loss_wsld'], rel=1e-5)
    assert top < set(end)

    path, _ = export_student(str(tmp_path / 'epoch_1.pth'), f'{tmp_path}/')
    assert path.name.startswith('wsld_r34_r18_in1k_')
    model = mmpretrain.get_model('resnet18_8xb32_in1k', pretrained=str(path))
    weights = model.state_dict()
    exported = read_checkpoint(str(path))['state_dict']
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[key], exported[key]) for key in weights)
    assert model._dataset_meta['classes'][281] == 'tabby, tabby cat'
