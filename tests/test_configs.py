"""Every shipped config, built as shipped; the ImageNet ones on photographs."""
from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.apis.model import ModelHub
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from wsld_plugin.checkpoints import export_student, read_checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs'
CONFIGS = sorted(FOLDER.glob('*.py'))
MAIN = FOLDER / 'wsld_r34_r18_in1k.py'
NAME = re.compile(r'(ce|(kd|dkd|dist|wsld)_[a-z0-9-]+)_[a-z0-9-]+_'
                  r'[a-z0-9]+(-[a-z0-9]+)*\.py')
# Teacher and student of the CIFAR-100 configs, and the learning rate.
PAIRS = {
    ('wrn-40-2', 'wrn-16-2'): 0.05,
    ('wrn-40-2', 'wrn-40-1'): 0.05,
    ('resnet56', 'resnet20'): 0.05,
    ('resnet110', 'resnet20'): 0.05,
    ('resnet110', 'resnet32'): 0.05,
    ('resnet32x4', 'resnet8x4'): 0.05,
    ('vgg13', 'vgg8'): 0.05,
    ('resnet32x4', 'shufflev1'): 0.01,
    ('resnet32x4', 'shufflev2'): 0.01,
    ('wrn-40-2', 'shufflev1'): 0.01,
    ('vgg13', 'mbv2'): 0.01,
}


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of crops of photographs, in ImageNet's layout."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for split, count in (('train', 8), ('val', 4)):
        lines = []
        for index in range(count):
            label = index % 2
            height, width = photos[label].shape[:2]
            top = rng.integers(height - 280)
            left = rng.integers(width - 330)
            name = f'n0{label}/{index}.JPEG'
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            crop = photos[label][top:top + 280, left:left + 330]
            Image.fromarray(crop).save(path)
            lines.append(f'{name} {label}\n')
        annotations = root / 'meta' / f'{split}.txt'
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(''.join(lines))
    return root


@pytest.fixture(scope='module')
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in CIFAR-10's layout: few files, but as many classes."""
    root = tmp_path_factory.mktemp('cifar10')
    rng = np.random.default_rng(0)
    for split, count in (('train', 100), ('val', 20)):
        for index in range(count):
            path = root / split / f'class{index % 10}' / f'{index}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(
                256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    return root


def small_run(config: Path, pictures: Path, work_dir: Path) -> dict[str, Any]:
    """Overrides that make a shipped config run here, and nothing else."""
    options: dict[str, Any] = {
        'work_dir': str(work_dir),
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1,
    }
    if not config.name.startswith('ce'):
        # There is no network where tests run.
        options['model.teacher_ckpt'] = None
    if config.stem.endswith('-cached'):
        options |= {
            'model.teacher.teacher_ckpt': str(work_dir / 'teacher.pth'),
            'model.teacher.cache': str(work_dir / 'cache'),
            'train_dataloader.dataset.views': 1,
            'train_dataloader.dataset.dataset.indices': 4,
        }
    if 'in1k' in config.name:
        options |= {
            f'{split}_dataloader.dataset.data_root': str(pictures)
            for split in ('train', 'val', 'test')
        }
        if config.stem.endswith('-cached'):
            root = options.pop('train_dataloader.dataset.data_root')
            options['train_dataloader.dataset.dataset.data_root'] = root
    if 'cifar10' in config.name:
        options |= {
            f'{place}.data_root': str(pictures)
            for place in ('train_dataloader.dataset.dataset',
                          'val_dataloader.dataset.dataset',
                          'test_dataloader.dataset')
        }
    return options


def make_cache(config: Path, options: dict[str, Any],
               call_tool: Callable[..., None]) -> None:
    """Answers of a random teacher, by the tool."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher.teacher)
    torch.save(teacher.state_dict(), options['model.teacher.teacher_ckpt'])
    call_tool('cache_teacher.py', config, '--cfg-options',
              *(f'{key}={value}' for key, value in options.items()))


@pytest.mark.parametrize(
    'config', [path for path in CONFIGS if 'cifar100' not in path.name],
    ids=lambda path: path.name)
def test_config_builds_and_learns(config: Path, imagenet: Path,
                                  cifar10: Path, tmp_path: Path,
                                  call_tool: Callable[..., None]) -> None:
    cfg = Config.fromfile(config)
    options = small_run(
        config, cifar10 if 'cifar10' in config.name else imagenet, tmp_path)
    if config.stem.endswith('-cached'):
        make_cache(config, options, call_tool)
    cfg.merge_from_dict(options)
    cfg.experiment_name = f'{config.stem}_{tmp_path.name}'
    cfg.log_level = 'WARNING'
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    runner = Runner.from_cfg(cfg)
    model = runner.model
    student = getattr(model, 'architecture', model)
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, training=True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    names = {key for key in losses if 'loss' in key and key != 'loss'}
    method = config.name.split('_')[0]
    assert {name for name in names if name.startswith('distill')
            } == (set() if method == 'ce' else {f'distill.loss_{method}'})
    assert all(torch.isfinite(losses[name]) for name in names)
    # Every weight of the student takes part, so that DDP need not search for
    # those that do not.
    assert all(param.grad is not None for param in student.parameters())
    assert 'find_unused_parameters' not in cfg


def differences(one: Any, other: Any, path: str = '') -> dict[str, tuple]:
    """Where two configs differ, by dotted path."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, tuple] = {}
        for key in one.keys() | other.keys():
            found |= differences(
                one.get(key), other.get(key), f'{path}.{key}'.lstrip('.'))
        return found
    return {} if one == other else {path: (one, other)}


def compare(name: str, main: str = MAIN.name) -> dict[str, tuple]:
    one, other = (
        Config.fromfile(FOLDER / path).to_dict() for path in (main, name))
    return differences(one, other)


def test_the_authors_recipe() -> None:
    cfg = Config.fromfile(MAIN)
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    assert cfg.param_scheduler.milestones == [30, 60, 90]
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.train_dataloader.batch_size * 8 == 256
    loss = cfg.model.distiller.distill_losses.loss_wsld
    assert loss == dict(type='WSLDLoss', tau=2, loss_weight=2.5)
    assert cfg.model.teacher_norm_eval is False
    assert cfg.model.teacher_ckpt == ModelHub.get(
        'resnet34_8xb32_in1k').weights


def test_the_authors_recipe_for_mobilenet() -> None:
    different = compare('wsld_r50_mbv1_in1k.py')
    networks = {'resnet18', 'resnet34', 'mobilenet_v1', 'resnet50'}
    assert {
        path for path in different if path.split('.')[0] not in networks
        and not path.startswith(('model.architecture.', 'model.teacher.'))
    } == {'model.teacher_ckpt'}
    cfg = Config.fromfile(FOLDER / 'wsld_r50_mbv1_in1k.py')
    assert cfg.model.architecture.backbone.type == 'MobileNetV1'
    assert cfg.model.teacher.backbone.depth == 50
    assert cfg.model.teacher_ckpt == ModelHub.get(
        'resnet50_8xb32_in1k').weights


METHOD = {
    f'model.distiller.{field}' for field in (
        'student_recorders.gt_labels', 'distill_losses.loss_wsld',
        'distill_losses.loss_kd', 'loss_forward_mappings.loss_wsld',
        'loss_forward_mappings.loss_kd')
} | {'custom_hooks'}


def test_siblings_differ_from_it_where_they_say() -> None:
    assert compare('wsld_r34_r18_in1k-evalbn.py') == {
        'model.teacher_norm_eval': (False, True),
        'optim_wrapper.optimizer.nesterov': (True, False),
    }
    assert set(compare('kd_r34_r18_in1k.py')) == METHOD
    assert {path.split('.')[0] for path in compare('ce_r18_in1k.py')
            } == {'model', 'custom_hooks', 'resnet34'}


@pytest.mark.parametrize('name, views', [
    ('wsld_r34_r18_in1k-evalbn', 10), ('wsld_r34_r18_digits', 20)])
def test_cached_siblings_differ_by_the_cache(name: str, views: int) -> None:
    online, cached = (
        Config.fromfile(ROOT / 'configs' / f'{one}.py').to_dict()
        for one in (name, f'{name}-cached'))
    teacher = cached['model'].pop('teacher')
    assert teacher['teacher'] == online['model'].pop('teacher')
    assert teacher['teacher_ckpt'] == online['model'].pop('teacher_ckpt')
    assert cached['model'].pop('teacher_ckpt') is None
    dataset = cached['train_dataloader'].pop('dataset')
    assert dataset == dict(
        type='SeededViews',
        dataset=online['train_dataloader'].pop('dataset'),
        views=views)
    assert differences(online, cached) == {
        'train_dataloader.sampler.type': ('DefaultSampler', 'ViewSampler')}


def test_every_config_has_the_name_of_what_it_is() -> None:
    assert [
        path.name for path in CONFIGS if not NAME.fullmatch(path.name)
    ] == []
    networks = {name for pair in PAIRS for name in pair}
    assert {path.stem for path in CONFIGS if 'cifar100' in path.name} == {
        f'ce_{name}_cifar100' for name in networks
    } | {
        f'{method}_{teacher}_{student}_cifar100' for method in ('kd', 'wsld')
        for teacher, student in PAIRS
    }


@pytest.mark.parametrize('pair', PAIRS, ids='_'.join)
def test_the_cifar100_recipe(pair: tuple[str, str]) -> None:
    teacher, student = pair
    kd, wsld = (f'{method}_{teacher}_{student}_cifar100.py'
                for method in ('kd', 'wsld'))
    cfg = Config.fromfile(FOLDER / wsld)
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD',
        lr=PAIRS[pair],
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True)
    assert cfg.param_scheduler == dict(
        type='MultiStepLR',
        by_epoch=True,
        milestones=[150, 180, 210],
        gamma=0.1)
    assert cfg.train_cfg.max_epochs == 240
    assert cfg.train_dataloader.batch_size == 64
    assert cfg.train_dataloader.dataset.pipeline == [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs')
    ]
    assert cfg.model.teacher_norm_eval is False
    losses = cfg.model.distiller.distill_losses
    assert losses == dict(
        loss_wsld=dict(type='WSLDLoss', tau=4, loss_weight=2.25))

    # The baselines differ in nothing but the method.
    assert set(compare(kd, wsld)) == METHOD
    kd_losses = Config.fromfile(FOLDER / kd).model.distiller.distill_losses
    assert kd_losses == dict(
        loss_kd=dict(type='KLDivergence', tau=4, loss_weight=2.25))
    ce = Config.fromfile(FOLDER / f'ce_{student}_cifar100.py')
    assert ce.model == cfg.model.architecture
    assert {
        path.split('.')[0]
        for path in compare(f'ce_{student}_cifar100.py', wsld)
    } - {key for key in cfg if cfg[key] == cfg.model.teacher} == {
        'model', 'pair', 'custom_hooks'
    }

    # Its teacher is what the teacher's config leaves behind.
    file = FOLDER / f'ce_{teacher}_cifar100.py'
    ce = Config.fromfile(file)
    assert ce.model == cfg.model.teacher
    assert cfg.model.teacher_ckpt == (
        f'work_dirs/{file.stem}/epoch_{ce.train_cfg.max_epochs}.pth')
    assert ce.optim_wrapper.optimizer.lr == 0.05


@pytest.mark.parametrize('method', ['kd', 'dkd', 'dist'])
@pytest.mark.parametrize('pair',
                         ['r34_r18_digits', 'resnet20_resnet8_cifar10'])
def test_peers_differ_in_the_method_alone(method: str, pair: str) -> None:
    different = compare(f'{method}_{pair}.py', f'wsld_{pair}.py')
    assert {
        path for path in different if not path.startswith('model.distiller.')
    } == {'custom_hooks'}
    losses = f'model.distiller.distill_losses.loss_{method}'
    # Nothing of WSLD is left.
    assert losses in different
    assert different['model.distiller.distill_losses.loss_wsld'][1] is None


def test_cifar10_is_chosen_and_reported_on_other_pictures(
        cifar10: Path) -> None:
    cfg = Config.fromfile(FOLDER / 'wsld_resnet20_resnet8_cifar10.py')
    files = {}
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.get('dataset', dataset).data_root = str(cifar10)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            built = DATASETS.build(dataset)
        built.full_init()
        files[split] = {
            built.get_data_info(index)['img_path']
            for index in range(len(built))
        }
    assert [len(files[split]) for split in files] == [20, 4, 20]
    assert not files['train'] & files['val']
    assert all('/val/' in path for path in files['test'])
    assert all('/train/' in path for path in files['train'] | files['val'])
    ce = Config.fromfile(FOLDER / 'ce_resnet20_cifar10.py')
    assert ce.model == cfg.model.teacher
    assert cfg.model.teacher_ckpt == (
        f'work_dirs/ce_resnet20_cifar10/epoch_{ce.train_cfg.max_epochs}.pth')
    assert ce.param_scheduler[1].end == ce.train_cfg.max_epochs


PAGE = (ROOT / 'docs' / 'reproduction.md').read_text()
# Parameters and multiply-adds, as the page prints them.
COUNTS = {
    name: (int(parameters.replace(',', '')), int(adds.replace(',', '')))
    for name, parameters, adds in re.findall(
        r'^\| \[([\w-]+)\].* \| ([\d,]+) \| ([\d,]+) \|$',
        PAGE, re.MULTILINE)
}


@pytest.mark.parametrize(
    'config', [path for path in CONFIGS if 'cifar100' in path.name],
    ids=lambda path: path.name)
def test_cifar100_config_builds_its_networks(config: Path) -> None:
    cfg = Config.fromfile(config)
    names = config.stem.split('_')[1:-1]
    if len(names) == 2:
        cfg.model.teacher_ckpt = None
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    networks = ([model.teacher, model.architecture]
                if len(names) == 2 else [model])
    for name, network in zip(names, networks):
        assert sum(weight.numel() for weight in network.parameters()
                   ) == COUNTS[name][0]


def test_counts_on_the_page_are_tested() -> None:
    assert set(COUNTS) == {name for pair in PAIRS for name in pair} | {'mbv1'}
    # Where each network is compared with its counts.
    tested = (ROOT / 'tests' / 'models' / 'networks.py').read_text()
    assert [
        name for name, counts in COUNTS.items()
        if not all(f'{count:_}' in tested for count in counts)
    ] == []


def test_the_page_links_what_is_there() -> None:
    links = re.findall(r'\]\((?!https://)([^)]+)\)', PAGE)
    assert [
        link for link in links if not (ROOT / 'docs' / link).exists()
    ] == []
    assert {
        path.name for path in CONFIGS if 'cifar100' in path.name
    } <= {Path(link).name for link in links}
    used = set(re.findall(r'\]\[(\w+)\]', PAGE))
    assert used == set(re.findall(r'^\[(\w+)\]: https://', PAGE, re.MULTILINE))


@pytest.mark.parametrize('switch', sorted(set(
    re.findall(r'`([a-z_]+\.[\w.]+=[^`]+)`', PAGE))))
def test_switches_of_the_page_change_something(switch: str) -> None:
    name = ('kd' if 'loss_kd' in switch else 'wsld') + (
        '_resnet56_resnet20_cifar100.py' if re.search(
            'loss_kd|padding|head', switch) else '_r34_r18_in1k.py')
    cfg = Config.fromfile(FOLDER / name)
    key, value = switch.split('=')
    *path, last = key.split('.')
    part: Any = cfg
    for step in path:
        part = part[int(step) if step.isdigit() else step]
    # These two have a default that no config repeats.
    before = part.get(last) if last in ('eps', 'padding_mode') else part[last]
    cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    after: Any = cfg
    for step in (*path, last):
        after = after[int(step) if step.isdigit() else step]
    assert after != before
    assert before is None or type(after) in (type(before), float)


@pytest.fixture(scope='module')
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A few random pictures, in the files of CIFAR-100."""
    from mmpretrain.datasets import CIFAR100
    root = tmp_path_factory.mktemp('cifar100')
    folder = root / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    hashes = {
        split: write(
            split, {
                'data': rng.integers(0, 256, (count, 3 * 32 * 32), np.uint8),
                'fine_labels': rng.integers(0, 100, count).tolist()
            })
        for split, count in (('train', 8), ('test', 4))
    }
    names = write('meta', {'fine_label_names': list(map(str, range(100)))})
    with pytest.MonkeyPatch.context() as patch:
        # Other pictures have other hashes.
        patch.setattr(CIFAR100, 'train_list', [['train', hashes['train']]])
        patch.setattr(CIFAR100, 'test_list', [['test', hashes['test']]])
        patch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': names})
        yield root


def train_on_cifar100(name: str, root: Path, work_dir: Path,
                      **options: Any) -> Runner:
    """Two iterations of a shipped config."""
    cfg = Config.fromfile(FOLDER / f'{name}.py')
    cfg.merge_from_dict({
        'work_dir': str(work_dir / name),
        'experiment_name': f'{name}_{work_dir.name}',
        'log_level': 'WARNING',
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        **{
            f'{split}_dataloader.{key}': value
            for split in ('train', 'val', 'test')
            for key, value in (('num_workers', 0),
                               ('dataset.data_root', str(root)))
        },
        **options,
    })
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_cifar100_pair_trains(cifar100: Path, tmp_path: Path) -> None:
    runner = train_on_cifar100('ce_resnet56_cifar100', cifar100, tmp_path)
    assert runner.iter == 2
    teacher = runner.model.state_dict()
    ckpt = tmp_path / 'ce_resnet56_cifar100' / 'epoch_1.pth'
    for name, losses in (
        ('ce_resnet20_cifar100', {'loss'}),
        ('kd_resnet56_resnet20_cifar100',
         {'loss', 'student.loss', 'distill.loss_kd'}),
        ('wsld_resnet56_resnet20_cifar100',
         {'loss', 'student.loss', 'distill.loss_wsld'}),
    ):
        options = {} if len(losses) == 1 else {
            'model.teacher_ckpt': str(ckpt)
        }
        runner = train_on_cifar100(name, cifar100, tmp_path, **options)
        assert runner.iter == 2
        log, = (tmp_path / name).glob('*/vis_data/scalars.json')
        lines = list(map(json.loads, log.read_text().splitlines()))
        steps = [line for line in lines if 'loss' in line]
        assert len(steps) == 2
        for step in steps:
            assert {key for key in step if 'loss' in key} == losses
            assert all(np.isfinite(step[key]) for key in losses)
        assert 'accuracy/top5' in lines[-1]
        if options:
            weights = runner.model.teacher.state_dict()
            assert all(
                torch.equal(weights[key], value)
                for key, value in teacher.items()
                if not re.search('running_|num_batches', key))


def test_batch_augments_of_the_student_are_kept(imagenet: Path,
                                                tmp_path: Path) -> None:
    cfg = Config.fromfile(MAIN)
    cfg.merge_from_dict(small_run(MAIN, imagenet, tmp_path))
    cfg.model.architecture.train_cfg = dict(
        augments=dict(type='CutMix', alpha=1.0))
    cfg.experiment_name = f'augments_{tmp_path.name}'
    cfg.train_dataloader.batch_size = 2
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.train_dataloader))
    data = runner.model.data_preprocessor(batch, training=True)
    assert all(one.gt_score.shape == (1000, ) for one in data['data_samples'])
    losses = runner.model(**data, mode='loss')
    assert torch.isfinite(losses['distill.loss_wsld'])


@pytest.fixture(scope='module')
def trained(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of the main config after an epoch of two steps."""
    work_dir = tmp_path_factory.mktemp('main config')
    options = small_run(MAIN, imagenet, work_dir)
    options['default_hooks.checkpoint.save_best'] = None
    options['default_hooks.logger.interval'] = 1
    del options['work_dir']
    subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'train.py'),
            str(MAIN), '--work-dir',
            str(work_dir), '--cfg-options',
            *(f'{key}={value}' for key, value in options.items())
        ],
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        check=True)
    return work_dir


def test_main_config_trains_and_validates(trained: Path) -> None:
    log, = trained.glob('*/vis_data/scalars.json')
    teacher, *steps, end = map(json.loads, log.read_text().splitlines())
    assert set(teacher) == {
        'teacher/accuracy/top1', 'teacher/accuracy/top5', 'step'
    }
    assert len(steps) == 2
    for step in steps:
        assert step['loss'] == pytest.approx(
            step['student.loss'] + step['distill.loss_wsld'], rel=1e-5)
    assert {'accuracy/top1', 'accuracy/top5'} < set(end)


def test_exported_student_is_mmpretrains(trained: Path,
                                         tmp_path: Path) -> None:
    import mmpretrain
    path, _ = export_student(str(trained / 'epoch_1.pth'), f'{tmp_path}/')
    assert re.fullmatch(r'wsld_r34_r18_in1k_\d{8}-[0-9a-f]{8}\.pth', path.name)
    model = mmpretrain.get_model(
        'resnet18_8xb32_in1k', pretrained=str(path))
    weights: dict[str, Tensor] = model.state_dict()
    exported = read_checkpoint(str(path))['state_dict']
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[key], exported[key]) for key in weights)
    assert model._dataset_meta['classes'][281] == 'tabby, tabby cat'


