"""tools/experiments.py on tiny trainings, and plans that cannot be run."""
from __future__ import annotations

import csv
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / 'tools'
STUDENT = str(HERE / 'tiny_student.py')
DISTILLATION = str(HERE / 'tiny_distillation.py')
PLAN: dict[str, Any] = {
    'name': 'tiny',
    'seeds': [0],
    'options': {
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.dataset.indices': 20,
        'train_dataloader.batch_size': 5,
        'train_dataloader.num_workers': 0,
        'val_dataloader.dataset.indices': 20,
        'test_dataloader.dataset.indices': 20,
        'default_hooks.checkpoint.interval': 1,
    },
    'compare': ['ce'],
    'runs': {
        'teacher': {
            'config': STUDENT,
            'options': {
                # So that there is time to kill it after the first.
                'train_cfg.max_epochs': 20
            }
        },
        'ce': {
            'config': STUDENT
        },
        'wsld': {
            'config': DISTILLATION,
            'needs': 'teacher',
            'options': {
                # The teacher is a ResNet-18 here.
                'model.teacher.backbone.depth': 18
            },
            'published': {
                'figure': 72.04,
                'source': 'authors'
            }
        }
    }
}

Call = Callable[..., None]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT'):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.syspath_prepend(str(TOOLS))


def changed(**changes: Any) -> dict[str, Any]:
    """The plan with other values; those of dicts by dotted path."""
    plan = json.loads(json.dumps(PLAN))
    for path, value in changes.items():
        *keys, last = path.split('__')
        part = plan
        for key in keys:
            part = part[key]
        if value is None:
            del part[last]
        else:
            part[last] = value
    return plan


def write(plan: Any) -> Path:
    path = Path('plan.yml')
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def message(call_tool: Call, *args: object) -> str:
    """The one line that a command leaves with."""
    with pytest.raises(SystemExit) as leaving:
        call_tool('experiments.py', *args)
    assert isinstance(leaving.value.code, str)
    assert '\n' not in leaving.value.code
    return leaving.value.code


def kill_after_first_epoch(work_dir: Path) -> None:
    """Kill the process that trains there, as the kernel does out of memory."""
    # Written after the checkpoint itself.
    while not (work_dir / 'last_checkpoint').exists():
        time.sleep(0.01)
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            arguments = path.read_text().split('\0')
        except OSError:  # has ended
            continue
        if str(work_dir) in arguments and 'train.py' in arguments[1]:
            os.kill(int(path.parts[2]), signal.SIGKILL)


def times(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob('*') if path.is_file()
    }


@pytest.mark.timeout(600)
def test_killed_resumed_reused_tested_reported(
        call_tool: Call, capsys: pytest.CaptureFixture) -> None:
    plan = write(PLAN)
    folder = Path('work_dirs', 'tiny')
    teacher, ce, wsld = (folder / name / 'seed-0'
                         for name in ('teacher', 'ce', 'wsld'))
    killer = threading.Thread(
        target=kill_after_first_epoch, args=[teacher], daemon=True)
    killer.start()
    # One fails, what needs it is not tried, and the other goes on.
    assert message(call_tool, plan, '--jobs', 2).endswith(
        '2 of 3 runs failed: teacher, seed 0; wsld, seed 0')
    output = capsys.readouterr().out
    last = [
        line for line in (teacher / 'train.log').read_text().split('\n')
        if line.strip()
    ][-1].strip()
    assert f'{teacher} ended with exit code -9 ({last})' in output
    assert f'{wsld} needs teacher, seed 0, which failed' in output
    assert 'Trained  work_dirs/tiny/ce/seed-0: val ' in output
    assert not wsld.exists()
    mark = json.loads((ce / 'training.json').read_text())
    assert (mark['finished'], mark['run'], mark['seed']) == (True, 'ce', 0)
    assert mark['versions']['torch'] == torch.__version__
    assert mark['seconds'] > 0

    # A half-finished plan can be looked at.
    call_tool('experiments.py', 'report', plan)
    output = capsys.readouterr().out
    assert 'wsld, seed 0: not started' in output
    assert 'teacher, seed 0: ' in output and ' of 20 epochs' in output

    before = times(ce)
    call_tool('experiments.py', plan)
    output = capsys.readouterr().out
    assert f'Reused   {ce}' in output and times(ce) == before
    assert '2 of 2 runs done, 0 at work, 0 failed' in output
    assert 'resumed epoch: ' in (teacher / 'train.log').read_text()
    assert len(list(teacher.glob('*/vis_data/scalars.json'))) == 2
    # It learnt from the teacher that the plan trained.
    weights = torch.load(teacher / 'epoch_20.pth', weights_only=False)
    log = (wsld / 'train.log').read_text()
    assert f"teacher_ckpt='{teacher}/epoch_20.pth'" in log
    assert weights['meta']['epoch'] == 20

    # Nothing is done again, and nothing is taken for what it is not.
    # A checkpoint that nothing needs any more may be removed.
    (teacher / 'epoch_20.pth').unlink()
    kept = times(folder)
    call_tool('experiments.py', plan)
    assert capsys.readouterr().out.count('Reused') == 3
    write(changed(runs__teacher__options={'train_cfg.max_epochs': 21}))
    assert message(call_tool, plan).endswith(
        f'{teacher} was trained with train_cfg.max_epochs = 20, the plan '
        'says 21 (and 1 more): give the run another name, or remove the '
        'folder')
    assert times(folder) == kept

    # Tests what is not tested.
    for work_dir, accuracy in ((teacher, 90.0), (wsld, 70.0)):
        (work_dir / 'test.json').write_text(
            json.dumps({'accuracy/top1': accuracy}))
    write(changed() | {'test': True})
    call_tool('experiments.py', plan)
    assert 'Training' not in capsys.readouterr().out
    tested = json.loads((ce / 'test.json').read_text())['accuracy/top1']
    call_tool('experiments.py', 'report', plan, '--out', 'results')
    assert 'Missing' not in capsys.readouterr().out
    with open('results/experiments.csv') as file:
        rows = {row['run']: row for row in csv.DictReader(file)}
    assert float(rows['ce']['test mean']) == tested
    assert float(rows['wsld']['test - ce mean']) == 70 - tested
    # A teacher is no method.
    assert rows['teacher']['test - ce mean'] == 'nan'
    assert '72.04* (authors)' in Path('results/report.md').read_text()
    for name in ('experiments.png', 'curves.png'):
        assert Path('results', name).read_bytes().startswith(b'\x89PNG')


def test_waits_for_a_process_that_is_at_it(
        capsys: pytest.CaptureFixture) -> None:
    from crew import Crew, Launcher
    from plans import read_plan
    from rich.console import Console
    run, = read_plan(write(changed(runs={'ce': {'config': STUDENT}}))).all_runs
    crew = Crew([run], Console(), Launcher(), [{}])
    run.work_dir.mkdir(parents=True)
    with run.log.open('a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        for _ in range(2):
            crew.start_what_can_start()
        assert (crew.jobs, crew.waiting) == ([], [run])
    assert capsys.readouterr().out.count('Waiting') == 1
    assert list(run.work_dir.iterdir()) == [run.log]


def test_what_a_log_ends_with_is_no_markup(
        capsys: pytest.CaptureFixture) -> None:
    from crew import Crew, Launcher
    from plans import read_plan
    from rich.console import Console
    run, = read_plan(write(changed(runs={'ce': {'config': STUDENT}}))).all_runs
    why = '[rank0]: OSError: cannot open [/data/x]'
    Crew([run], Console(), Launcher(), [{}]).fail(run, why)
    assert f'Failed   {why}' in capsys.readouterr().out


def lines(call_tool: Call, capsys: pytest.CaptureFixture,
          *args: object) -> list[list[str]]:
    call_tool('experiments.py', write(PLAN), '--dry-run', *args)
    assert not Path('work_dirs').exists()
    return [
        shlex.split(line) for line in capsys.readouterr().out.splitlines()
    ]


OPTIONS = [
    'randomness.seed=0',
    *(f'{key}={value}' for key, value in PLAN['options'].items())
]
STUDENTS_OPTIONS = [
    *OPTIONS, 'model.teacher.backbone.depth=18',
    'model.teacher_ckpt=work_dirs/tiny/teacher/seed-0/epoch_20.pth'
]


def test_dry_run(call_tool: Call, capsys: pytest.CaptureFixture) -> None:
    teacher, ce, wsld = lines(call_tool, capsys)
    assert ce[1:] == [
        str(TOOLS / 'train.py'), STUDENT, '--work-dir',
        'work_dirs/tiny/ce/seed-0', '--resume', '--cfg-options', *OPTIONS
    ]
    assert 'train_cfg.max_epochs=20' in teacher
    assert wsld[wsld.index('--cfg-options') + 1:] == STUDENTS_OPTIONS


def test_a_reader_of_the_dry_run_may_stop_early() -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run([
        sys.executable, TOOLS / 'experiments.py',
        write(PLAN), '--dry-run'
    ], stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert done.returncode == 1
    assert 'BrokenPipeError' not in done.stderr


def test_dry_run_with_slurm(call_tool: Call,
                            capsys: pytest.CaptureFixture) -> None:
    _, _, wsld = lines(call_tool, capsys, '--launcher', 'slurm',
                       '--partition', 'night', '--gpus', 16)
    assert wsld[0] == 'GPUS=16' and wsld[1].startswith('PYTHON=')
    assert wsld[2:] == [
        'bash', str(TOOLS / 'slurm_train.sh'), 'night', 'tiny_wsld_seed-0',
        DISTILLATION, 'work_dirs/tiny/wsld/seed-0', '--resume',
        '--cfg-options', *STUDENTS_OPTIONS
    ]


def test_dry_run_on_several_machines(
        call_tool: Call, capsys: pytest.CaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NNODES', '2')
    args = ('--launcher', 'pytorch', '--gpus', 8)
    assert 'NNODES=2 needs NODE_RANK and MASTER_ADDR and PORT too' in message(
        call_tool, write(PLAN), *args)
    monkeypatch.setenv('NODE_RANK', '1')
    monkeypatch.setenv('MASTER_ADDR', 'node0')
    monkeypatch.setenv('PORT', '29500')
    _, ce, _ = lines(call_tool, capsys, *args)
    assert ce[:4] == [
        'NNODES=2', 'NODE_RANK=1', 'MASTER_ADDR=node0', 'PORT=29500'
    ]
    assert ce[5:] == [
        'bash', str(TOOLS / 'dist_train.sh'), STUDENT, '8', '--work-dir',
        'work_dirs/tiny/ce/seed-0', '--resume', '--cfg-options', *OPTIONS
    ]
    assert 'only the first machine runs a plan' in message(
        call_tool, write(PLAN), *args)


def test_runs_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from crew import Launcher, slots
    from plans import read_plan
    runs = read_plan(write(PLAN)).all_runs
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    key = 'CUDA_VISIBLE_DEVICES'
    assert slots(Launcher(), None, runs) == [{key: '3'}, {key: '5'}]
    assert slots(Launcher(), 3, runs)[2] == {key: '3'}
    assert slots(Launcher('pytorch', 2), None, runs) == [{key: '3,5'}]
    assert slots(Launcher(), None, runs[:1]) == [{key: '3'}]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert slots(Launcher(), None, runs) == [{}]


def test_grid() -> None:
    from plans import read_plan
    rate = 'optim_wrapper.optimizer.lr'
    nesterov = 'optim_wrapper.optimizer.nesterov'
    plan = read_plan(
        write(
            changed(
                runs={
                    'ce': {
                        'config': STUDENT,
                        'seeds': [3, 1],
                        'options': {
                            rate: 1
                        },
                        'grid': {
                            'recipe': {
                                rate: ['1e-3', 0.5],
                                'optim_wrapper.optimizer.momentum': [0, 0.9]
                            },
                            'nesterov': {
                                nesterov: [True, False]
                            }
                        }
                    }
                },
                compare=['ce_recipe-0.5_nesterov-true'])))
    assert list(plan.runs) == [
        f'ce_recipe-{one}_nesterov-{other}' for one in ('1e-3', '0.5')
        for other in ('true', 'false')
    ]
    _, run = plan.runs['ce_recipe-1e-3_nesterov-false']
    assert run.work_dir == Path(
        'work_dirs/tiny/ce_recipe-1e-3_nesterov-false/seed-1')
    optimizer = run.cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov,
            run.cfg.randomness.seed) == (0.001, 0, False, 1)
    assert [run.seed for run in plan.all_runs] == 4 * [1] + 4 * [3]


MISTAKES: dict[str, dict[str, Any]] = {
    "expected one of name, seeds, runs, options, test, compare, got 'run'":
    dict(run=1),
    "expected the key seeds, got 'name, options": dict(seeds=None),
    'name: expected a name of letters, digits': dict(name='a/b'),
    'seeds: expected a list of different numbers from 0, got [1, 1]':
    dict(seeds=[1, 1]),
    "test: expected true or false, got 'yes'": dict(test='yes'),
    "compare: expected some of teacher, ce, wsld, got 'kd'":
    dict(compare=['kd']),
    "runs.ce: expected one of config, seeds, options": dict(runs__ce__lr=1),
    'runs.ce.config: cannot read': dict(runs__ce__config='missing.py'),
    "runs.wsld.needs: expected one of teacher, ce, wsld, got 'kd'":
    dict(runs__wsld__needs='kd'),
    'runs.wsld.needs: expected a run with one seed': dict(
        runs__teacher__seeds=[0, 1]),
    'runs.ce.needs: expected a config with a model.teacher': dict(
        runs__ce__needs='teacher'),
    "runs.wsld.needs: expected one of teacher, ce, wsld, got ['ce']":
    dict(runs__wsld__needs=['ce']),
    "compare: expected some of teacher, ce, wsld, got ['ce']":
    dict(compare=[['ce']]),
    "runs: expected no run that needs itself in the end, got 'wsld'":
    dict(runs__wsld__needs='wsld'),
    'options.work_dir: expected an option that the runner does not set':
    dict(options__work_dir='x'),
    "options.log_level: expected text without commas and blanks": dict(
        options__log_level='a, b'),
    "runs.teacher: expected options that": dict(options__optimizer='SGD'),
    'runs.teacher: the options do not fit': {
        'options__param_scheduler.7.end': 1
    },
    'runs.ce.grid.lr: expected options with equally many values': dict(
        runs__ce__grid={'lr': {
            'log_level': ['A', 'B'],
            'load_from': ['a']
        }}),
    'runs.wsld.published: expected the key source': dict(
        runs__wsld__published={'figure': 1}),
}


@pytest.mark.parametrize('expected', MISTAKES)
def test_mistakes_are_told_in_one_line(expected: str,
                                       call_tool: Call) -> None:
    plan = write(changed(**MISTAKES[expected]))
    assert expected in message(call_tool, plan)
    assert [path.name for path in Path().iterdir()] == ['plan.yml']


def test_other_mistakes(call_tool: Call,
                        capsys: pytest.CaptureFixture) -> None:
    assert 'cannot read the plan missing.yml' in message(
        call_tool, 'missing.yml')
    plan = write(PLAN)
    assert 'no run of the plan tiny is finished' in message(
        call_tool, 'report', plan)
    plan.write_text('a: [')
    assert 'cannot read the plan plan.yml' in message(call_tool, plan)
    for args in (['--jobs', 0], ['--gpus', 2], ['--launcher', 'slurm']):
        with pytest.raises(SystemExit):
            call_tool('experiments.py', plan, *args)
        assert 'experiments.py: error: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    'path',
    sorted((TOOLS.parent / 'configs' / 'plans').iterdir()),
    ids=lambda path: path.name)
def test_shipped_plans_can_be_run(path: Path, call_tool: Call,
                                  capsys: pytest.CaptureFixture) -> None:
    from plans import read_plan
    plan = read_plan(path)
    assert plan.name == path.stem
    assert plan.compare
    call_tool('experiments.py', path, '--dry-run')
    commands = capsys.readouterr().out.splitlines()
    assert sum('train.py' in line for line in commands) == len(plan.all_runs)
