"""train.py, test.py, export_student.py and the scripts around them."""
from __future__ import annotations

import json
import pickle
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / 'tools'
DISTILLATION = HERE / 'tiny_distillation.py'
STUDENT = HERE / 'tiny_student.py'
# The scans that training validates on.
ON_VAL = ('--cfg-options', 'test_dataloader.dataset.split=val')

Call = Callable[..., None]
Start = Callable[..., subprocess.Popen]


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(call_tool: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of an epoch with running averages of the weights."""
    work_dir = tmp_path_factory.mktemp('trained')
    call_tool('train.py', DISTILLATION, '--work-dir', work_dir,
              '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=1',
              'default_hooks.ema.type=EMAHook',
              'default_hooks.ema.momentum=0.1')
    return work_dir


@pytest.fixture(scope='module')
def exported(call_tool: Call, trained: Path) -> Path:
    call_tool('export_student.py', trained / 'epoch_1.pth', f'{trained}/out/')
    path, = (trained / 'out').iterdir()
    return path


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_learning_rate_is_scaled(trained: Path) -> None:
    steps = [entry for entry in scalars(trained) if 'lr' in entry]
    # 0.02 is for 32 scans, a step takes 16.
    assert steps[0]['lr'] == pytest.approx(0.01)


@pytest.mark.parametrize('config', [DISTILLATION, STUDENT])
@pytest.mark.parametrize('whose', ['distiller', 'student'])
def test_both_checkpoints_with_both_configs(
        config: Path, whose: str, trained: Path, exported: Path,
        call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    checkpoint = exported if whose == 'student' else trained / 'epoch_1.pth'
    call_tool('test.py', config, checkpoint, '--work-dir', tmp_path, *ON_VAL)
    metrics = json.loads(last_line(capsys))
    validated = scalars(trained)[-1]
    assert metrics == {'accuracy/top1': validated['accuracy/top1']}


def test_two_processes_test_alike(trained: Path, start_tool: Start,
                                  tmp_path: Path) -> None:
    run = start_tool('dist_test.sh', DISTILLATION, trained / 'epoch_1.pth', 2,
                     '--work-dir', tmp_path / 'a b', *ON_VAL)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output[-3000:]
    lines = [line for line in output.splitlines() if line.startswith('{"acc')]
    assert [json.loads(line)['accuracy/top1'] for line in lines
            ] == [scalars(trained)[-1]['accuracy/top1']]


def test_two_machines_train_as_one(start_tool: Start, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(('', 0))
        port = free.getsockname()[1]
    monkeypatch.setenv('NNODES', '2')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('PORT', str(port))
    machines = []
    for rank in range(2):
        monkeypatch.setenv('NODE_RANK', str(rank))
        machines.append(
            start_tool('dist_train.sh', DISTILLATION, 1, '--work-dir',
                       tmp_path, '--cfg-options', 'train_cfg.max_epochs=1'))
    for machine in machines:
        output, _ = machine.communicate(timeout=300)
        assert machine.returncode == 0, output[-3000:]
    # Half of the 128 scans each, in batches of 16.
    assert [entry['step'] for entry in scalars(tmp_path) if 'lr' in entry
            ] == [1, 2, 3, 4]
    assert (tmp_path / 'epoch_1.pth').exists()


def test_outputs(exported: Path, call_tool: Call, tmp_path: Path,
                 capsys: pytest.CaptureFixture) -> None:
    common = (STUDENT, exported, '--work-dir', tmp_path, *ON_VAL)
    call_tool('test.py', *common, '--out', tmp_path / 'metrics.json',
              '--out-item', 'metrics')
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics == json.loads(last_line(capsys))
    call_tool('test.py', *common, '--out', tmp_path / 'scans.pkl')
    scans = pickle.loads((tmp_path / 'scans.pkl').read_bytes())
    assert len(scans) == 64
    assert scans[0]['pred_score'].shape == (10, )


def test_export_prints_where(trained: Path, call_tool: Call, tmp_path: Path,
                             capsys: pytest.CaptureFixture) -> None:
    call_tool('export_student.py', trained / 'epoch_1.pth', tmp_path / 'r18')
    out = capsys.readouterr().out.splitlines()
    assert out[-2] == "The student's averaged (EMA) weights:"
    path, = tmp_path.glob('r18_*.pth')
    assert out[-1] == str(path)


def test_mixed_precision_without_validation(call_tool: Call,
                                            tmp_path: Path) -> None:
    call_tool('train.py', DISTILLATION, '--work-dir', tmp_path, '--amp',
              '--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    log, = tmp_path.glob('*/*.log')
    assert "type='AmpOptimWrapper'" in log.read_text()
    losses = [entry['loss'] for entry in scalars(tmp_path) if 'loss' in entry]
    assert len(losses) == 8
    assert torch.tensor(losses).isfinite().all()
    assert not any('accuracy/top1' in entry for entry in scalars(tmp_path))


# What is said, the tool and its arguments; files are made as their names say.
MISTAKES: dict[str, tuple[str, ...]] = {
    'cannot build SDG: ': (
        'train.py', '{distillation}', '--cfg-options',
        'optim_wrapper.optimizer.type=SDG'),
    'cannot build train_loop: invalid literal': (
        'train.py', '{distillation}', '--cfg-options',
        'train_cfg.max_epochs=x'),
    'sets val_dataloader.num_workers to [1], expected an integer': (
        'train.py', '{distillation}', '--cfg-options',
        'val_dataloader.num_workers=[1]'),
    'cannot build type=None: type must be': (
        'train.py', '{distillation}', '--cfg-options',
        'default_hooks.timer.type=None'),
    'cannot download http://127.0.0.1:9/teacher.pth: <urlopen': (
        'train.py', '{distillation}', '--cfg-options',
        'model.teacher_ckpt=http://127.0.0.1:9/teacher.pth'),
    'auto_scale_lr.base_batch_size': (
        'train.py', '{distillation}', '--auto-scale-lr', '--cfg-options',
        'auto_scale_lr=None'),
    'cannot replace optim_wrapper.type=ApexOptimWrapper': (
        'train.py', '{distillation}', '--amp', '--cfg-options',
        'optim_wrapper.type=ApexOptimWrapper'),
    "optim_wrapper.dtype is 'float16'": (
        'train.py', '{distillation}', '--amp', '--cfg-options',
        'optim_wrapper.dtype=float16'),
    'was not started by that launcher': (
        'train.py', '{distillation}', '--launcher', 'pytorch'),
    'text.pth is no checkpoint: it starts with': (
        'train.py', '{distillation}', '--resume', 'text.pth'),
    '{exported} holds the student alone, and no training': (
        'train.py', '{distillation}', '--resume', '{exported}'),
    '{exported} does not fit the ImageClassifier': (
        'test.py', '{student}', '{exported}', '--cfg-options',
        'model.backbone.depth=34'),
    'teacher.pth holds no student:': (
        'export_student.py', 'teacher.pth', 'out/'),
}


@pytest.mark.parametrize('message', MISTAKES)
@pytest.mark.skipif(
    torch.cuda.is_available(), reason='some mistakes are none with a GPU')
def test_mistakes_are_told_in_one_line(
        message: str, exported: Path, refusal: Callable[..., str],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    Path('text.pth').write_text('lost')
    torch.save({'state_dict': {'teacher.w': torch.rand(1)}}, 'teacher.pth')
    names = dict(
        exported=exported, distillation=DISTILLATION, student=STUDENT)
    line = refusal(*(arg.format(**names) for arg in MISTAKES[message]))
    assert message.format(**names) in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('options, message', [
    (('--out', 'x.json'), 'pred goes to a file whose name ends with .pkl or'),
    (('--out', 'x.csv', '--out-item', 'metrics'), 'name ends with .json'),
    (('--out-item', 'metrics'), '--out-item needs --out'),
])
def test_wrong_output_is_told_before_the_evaluation(
        options: tuple[str, ...], message: str,
        refusal: Callable[..., str]) -> None:
    assert message in refusal('test.py', 'nowhere.py', 'nowhere.pth',
                              *options)


@pytest.mark.parametrize('script', sorted(TOOLS.glob('*.sh')),
                         ids=lambda path: path.name)
def test_scripts_tell_their_usage(script: Path) -> None:
    run = subprocess.run([str(script)], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f'usage: {script} ')
