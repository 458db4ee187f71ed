"""Plans: real runs that are killed and go on, and what cannot be run."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip('snakemake', minversion='9')
HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / 'tools' / 'experiments'
STUDENT, DISTILLATION = (str(HERE / f'tiny_{name}.py')
                         for name in ('student', 'distillation'))
EPOCHS = 'train_cfg.max_epochs'
PLAN: dict[str, Any] = {
    'name': 'tiny', 'seeds': [0], 'test': True, 'compare': ['ce'],
    'options': {
        EPOCHS: 1, 'train_cfg.val_interval': 1,
        'train_dataloader.dataset.indices': 20,
        'train_dataloader.batch_size': 5, 'train_dataloader.num_workers': 0,
        'val_dataloader.dataset.indices': 20,
        'test_dataloader.dataset.indices': 20,
        'default_hooks.checkpoint.interval': 1,
    },
    'runs': {
        # So that there is time to kill it after the first epoch.
        'teacher': {'config': STUDENT, 'options': {EPOCHS: 12}},
        'ce': {'config': STUDENT, 'options': {EPOCHS: 12}},
        # Its teacher is a ResNet-18 here.
        'wsld': {'config': DISTILLATION, 'needs': 'teacher',
                 'options': {'model.teacher.backbone.depth': 18}},
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield
    for pid in trainings().values():
        os.kill(pid, signal.SIGKILL)


def write(**changes: Any) -> None:
    """The plan, with other values by dotted path."""
    plan = json.loads(json.dumps(PLAN))
    for path, value in changes.items():
        *keys, last = path.split('__')
        part = plan
        for key in keys:
            part = part[key]
        part[last] = value
    Path('plan.yml').write_text(yaml.safe_dump(plan, sort_keys=False))


def start(*args: object) -> subprocess.Popen:
    """The documented command, with what else is on its line."""
    with open('output', 'w') as file:
        return subprocess.Popen(
            [sys.executable, '-m', 'snakemake', '--snakefile',
             EXPERIMENTS / 'Snakefile', '--config', 'plan=plan.yml',
             '--cores', '2', *map(str, args)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '5,7'})


def output(*args: object, code: int = 0) -> str:
    returned = start(*args).wait()
    text = Path('output').read_text()
    assert returned == code, text
    return text


def trainings() -> dict[str, int]:
    """Processes that train in this folder, by their work dir."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_text().split('\0')
            inside = (path.parent / 'cwd').resolve() == Path.cwd()
        except OSError:  # has ended
            continue
        if inside and words[1:] and words[1].endswith('train.py'):
            found[words[words.index('--work-dir') + 1]] = int(path.parts[2])
    return found


@pytest.mark.timeout(600)
def test_killed_resumed_tested_reported() -> None:
    write()
    process = start()
    running: dict[str, int] = {}
    # Each waits where it has something to go on from.
    while len(running) < 2:
        assert process.poll() is None
        for run, pid in trainings().items():
            if run not in running and Path(run, 'last_checkpoint').exists():
                os.kill(pid, signal.SIGSTOP)
                running[run] = pid
        time.sleep(0.05)
    gpus = [re.findall(r'\0CUDA_VISIBLE_DEVICES=(\d)',
                       Path(f'/proc/{pid}/environ').read_text())
            for pid in running.values()]
    process.kill()
    process.wait()
    assert sorted(gpus) == [['5'], ['7']]
    # One that is left behind is killed, too, the other is in no hurry.
    ce, teacher = sorted(running)
    os.kill(running[teacher], signal.SIGKILL)
    process = start()
    while not Path(f'{teacher}.test.json').exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert trainings().pop(ce) == running[ce]
    assert len([*Path(ce).glob('2*')]) == 1
    os.kill(running[ce], signal.SIGCONT)
    assert process.wait() == 0, Path('output').read_text()
    # The one was trained on, the other waited for.
    assert 'resumed epoch: ' in Path(f'{teacher}.log').read_text()
    assert [
        sum('"iter"' in path.read_text()
            for path in Path(run).glob('*/vis_data/scalars.json'))
        for run in (teacher, ce)
    ] == [2, 1]
    wsld, = Path('work_dirs/tiny').glob('wsld-*/seed-0')
    assert (f"teacher_ckpt='{teacher}/epoch_12.pth'"
            in wsld.with_suffix('.py').read_text())
    tested = json.loads(Path(f'{ce}.test.json').read_text())['accuracy/top1']
    report = Path('work_dirs/tiny/report/report.md').read_text()
    assert f'| {tested:.2f} |' in report and 'Missing' not in report

    # Nothing is done twice, and nothing in the folder of other settings.
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns
                for path in Path('work_dirs').rglob('*')}

    kept = times()
    assert 'Nothing to be done' in output()
    assert times() == kept


def read() -> dict[str, Any]:
    from plan import read_plan
    return read_plan(Path('plan.yml'), Path('w'))[1]


def test_grid() -> None:
    rate = 'optim_wrapper.optimizer.lr'
    nesterov = {'optim_wrapper.optimizer.nesterov': [True, False]}
    write(compare=[], runs={
        'ce': {'config': STUDENT, 'seeds': [3, 1], 'options': {rate: 1},
               'grid': {'rate': {rate: ['1e-3', 0.5]}, 'nesterov': nesterov}}
    })
    # As people write it: YAML takes it for text.
    Path('plan.yml').write_text(
        Path('plan.yml').read_text().replace("'1e-3'", '1e-3'))
    runs = list(read().values())
    assert [run.name for run in runs[::2]] == [
        f'ce_rate-{one}_nesterov-{other}' for one in ('0.001', '0.5')
        for other in ('true', 'false')
    ]
    assert [run.seed for run in runs] == 4 * [3, 1]
    optimizer = runs[3].cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.nesterov) == (0.001, False)
    assert runs[3].cfg.randomness.seed == 1


def test_folders_are_named_after_the_settings(tmp_path: Path) -> None:
    def folders(**changes: Any) -> dict[str, Path]:
        write(**changes)
        return {run.name: run.work_dir.parent for run in read().values()}

    def differ(**changes: Any) -> set[str]:
        return {name for name, _ in
                folders(**changes).items() - before.items()}

    before = folders()
    assert len(set(before.values())) == 3
    assert differ() == differ(runs__ce__seeds=[5]) == set()
    assert differ(seeds=[5]) == {'wsld'}
    assert differ(runs__ce__options={EPOCHS: 13}) == {'ce'}
    # What it learns from is a part of what a student depends on.
    assert differ(runs__teacher__options={EPOCHS: 13}) == {'teacher', 'wsld'}
    assert differ(options__log_level='ERROR') == {*before}
    # A teacher that no run trains: its file counts, not its name.
    file = tmp_path / 'teacher.pth'
    changes = dict(runs__wsld={'config': DISTILLATION,
                               'options': {'model.teacher_ckpt': str(file)}})
    before = folders(**changes)
    file.write_bytes(b'one')
    assert differ(**changes) == {'wsld'}
    before = folders(**changes)
    file.write_bytes(b'another')
    assert differ(**changes) == {'wsld'}


def check_mistakes(*expected: str) -> None:
    """Each is told in one line, and nothing else is."""
    from plan import ConfigError
    with pytest.raises(ConfigError) as info:
        read()
    lines = str(info.value).split('\n')
    assert all(line.startswith('plan.yml: ') for line in lines)
    assert [part for part in expected
            if sum(part in line for line in lines) != 1] == []
    assert len(lines) == len(expected)


def test_all_mistakes_of_a_file_at_once() -> None:
    write(
        name='a/b', seeds=[0, 'one'], test='yes', extra=1, runs__ce__lr=1,
        runs__wsld__grid={'tau': {'log_level': []}, 'a b': {'log_level': [1]}},
        runs__none={'needs': 'ce'})
    with Path('plan.yml').open('a') as file:
        file.write('name: again\n')
    check_mistakes(
        'name stands twice', 'seeds.1: Input should be a valid integer',
        'test: Input should be a valid boolean', 'extra: Extra inputs',
        'runs.ce.lr: Extra inputs', 'runs.wsld.grid.tau.log_level: List sho',
        'runs.wsld.grid.a b.[key]: String should match',
        'runs.none.config: Field required')


def test_all_mistakes_of_its_configs_at_once() -> None:
    write(
        compare=['kd', 'ce'], runs__ce__seeds=[1, 1],
        runs__wsld__needs='nobody', runs__gone={'config': 'gone.py'},
        runs__bad={'config': STUDENT, 'needs': 'ce',
                   'options': {'randomness.seed': 1, 'optimizer': 'SGD'}},
        runs__worse={'config': STUDENT,
                     'options': {'param_scheduler.7.end': 1}},
        runs__student={'config': DISTILLATION, 'needs': 'wsld',
                       'options': {'model.teacher_ckpt': 'x.pth'}})
    check_mistakes(
        'runs.ce: seeds: expected different ones, got [1, 1]',
        'runs.wsld: needs: expected one seed of a network without a '
        'teacher, got nobody', 'runs.gone: cannot read the config gone.py',
        'tiny_student.py has no randomness.seed that a plan may set',
        'tiny_student.py has no optimizer that a plan may set',
        'runs.bad: needs: expected one seed', 'param_scheduler.7.end=1',
        'runs.student: needs: expected a config with a model.teacher, and',
        'runs.student: needs: expected one seed', 'compare: expected some')


@pytest.mark.parametrize('args, expected', [
    ('plan=gone.yml', 'gone.yml: [Errno 2] No such file or directory'),
    ('workdirs=x', 'expected --config plan=FILE')])
def test_mistakes_are_told_without_a_trace(args: str, expected: str) -> None:
    last = output('--config', args, code=2).splitlines()[-1]
    assert last.startswith(expected)


@pytest.mark.parametrize('path', sorted(EXPERIMENTS.glob('plans/*.yml')))
def test_shipped_plans_can_be_run(path: Path) -> None:
    from plan import read_plan
    if path.stem == 'camvid':
        pytest.importorskip('mmseg')
    plan, runs = read_plan(path, Path('w'))
    # A grid chooses; it has no business with `test`.
    assert plan.name == path.stem
    assert plan.test is bool(plan.compare) is ('grid' not in plan.name)
    counts = {'digits': 37, 'digits-regularization': 29, 'cifar10': 46,
              'tinyimagenet100': 50, 'tinyimagenet100-grid': 12,
              'camvid': 12}
    assert len(runs) == counts[plan.name]
