"""Plans: real runs that are killed and go on, and what cannot be run."""
from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip('snakemake')
HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / 'tools' / 'experiments'
STUDENT, DISTILLATION = (str(HERE / f'tiny_{name}.py')
                         for name in ('student', 'distillation'))
EPOCHS = 'train_cfg.max_epochs'
PLAN: dict[str, Any] = {
    'name': 'tiny',
    'seeds': [0],
    'test': True,
    'compare': ['ce'],
    'options': {
        EPOCHS: 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.dataset.indices': 20,
        'train_dataloader.batch_size': 5,
        'train_dataloader.num_workers': 0,
        'val_dataloader.dataset.indices': 20,
        'test_dataloader.dataset.indices': 20,
        'default_hooks.checkpoint.interval': 1,
    },
    'runs': {
        # So that there is time to kill it after the first epoch.
        'teacher': {'config': STUDENT, 'options': {EPOCHS: 30}},
        'ce': {'config': STUDENT, 'options': {EPOCHS: 30}},
        'wsld': {
            'config': DISTILLATION,
            'needs': 'teacher',
            # The teacher is a ResNet-18 here.
            'options': {'model.teacher.backbone.depth': 18},
        },
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def write(plan: Any = PLAN, **changes: Any) -> Path:
    """The plan, with other values by dotted path."""
    plan = json.loads(json.dumps(plan))
    for path, value in changes.items():
        *keys, last = path.split('__')
        part = plan
        for key in keys:
            part = part[key]
        part[last] = value
    Path('plan.yml').write_text(yaml.safe_dump(plan, sort_keys=False))
    return Path('plan.yml')


@contextmanager
def snakemake(*args: object) -> Iterator[subprocess.Popen]:
    """The documented command, with what else is on its line."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'snakemake', '--snakefile',
         EXPERIMENTS / 'Snakefile', '--config', 'plan=plan.yml', '--cores',
         '2', *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': '5,7'})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output(*args: object, code: int = 0) -> str:
    with snakemake(*args) as process:
        text = process.communicate()[0]
    assert process.returncode == code, text
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


def times(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob('*') if path.is_file()
    }


@pytest.mark.timeout(600)
def test_killed_resumed_tested_reported() -> None:
    write()
    with snakemake() as process:
        while not all(Path(run, 'last_checkpoint').exists()
                      for run in trainings()) or len(trainings()) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        gpus = {
            word for pid in trainings().values()
            for word in Path(f'/proc/{pid}/environ').read_text().split('\0')
            if word.startswith('CUDA_VISIBLE_DEVICES')
        }
        process.send_signal(signal.SIGKILL)
    # One GPU for each. What is left behind trains on, one of them not.
    assert gpus == {'CUDA_VISIBLE_DEVICES=5', 'CUDA_VISIBLE_DEVICES=7'}
    teacher, ce = sorted(trainings(), reverse=True)
    assert (Path(teacher).parent.name[:8], Path(ce).name) == ('teacher-',
                                                             'seed-0')
    os.kill(trainings()[teacher], signal.SIGKILL)
    assert list(trainings()) == [ce]
    output()
    # The one went on, the other was waited for.
    assert 'resumed epoch: ' in Path(f'{teacher}.log').read_text()
    logs = [path.read_text() for path in Path(ce).glob('2*/*.log')]
    assert sum('Epoch(train)  [2]' in log or 'Epoch(train) [2]' in log
               for log in logs) <= 1
    wsld, = Path('work_dirs/tiny').glob('wsld-*/seed-0')
    assert f"teacher_ckpt='{teacher}/epoch_30.pth'" in wsld.with_suffix(
        '.py').read_text()
    tested = json.loads(Path(f'{ce}.test.json').read_text())['accuracy/top1']
    report = Path('work_dirs/tiny/report/report.md').read_text()
    assert f'| ce | 1 of 1 | ' in report and f'| {tested:.2f} |' in report
    assert 'Missing' not in report

    # Nothing twice, and nothing in the folder of other settings.
    kept = times(Path('work_dirs'))
    assert 'Nothing to be done' in output()
    write(runs__teacher__options={EPOCHS: 31})
    text = output('--dry-run', '--quiet', 'rules')
    assert text.count('') and times(Path('work_dirs')) == kept
