"""Several trainings in one process: apart, resumed, refused."""
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import differing
from filelock import FileLock
from mmengine.config import Config
from mmengine.logging import MMLogger

from wsld_plugin.analysis import read_history
from wsld_plugin.distillation import Training, TrainingError, run_trainings

TINY = Path(__file__).parents[1] / 'tools' / 'tiny_distillation.py'


def tiny(folder, **options):
    """Two epochs of four steps."""
    cfg = Config.fromfile(TINY)
    cfg.merge_from_dict({
        'randomness': dict(seed=1), 'train_cfg.max_epochs': 2,
        'train_dataloader.num_workers': 0, 'train_dataloader.batch_size': 8,
        'train_dataloader.dataset.indices': 32,
        'val_dataloader.dataset.indices': 40, **options})
    return Training(cfg, folder)


def same_weights(one, other):
    return not differing(one.checkpoint, other.checkpoint)


def test_trainings_leave_no_trace_in_each_other(tmp_path, capsys):
    alone, first, again = (
        tiny(tmp_path / name / 'run') for name in ('alone', 'first', 'again'))
    other = tiny(tmp_path / 'other', **{'randomness.seed': 2})
    run_trainings([alone])
    run_trainings([first, other, again])
    assert same_weights(alone, again) and same_weights(alone, first)
    assert not same_weights(alone, other)
    captured = capsys.readouterr()
    assert captured.err == ''
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines] == 4 * ['Training', 'Trained']
    for run in (first, other, again):
        assert 'Epoch(train)' in (run.work_dir / 'train.log').read_text()
        history = read_history(run.work_dir)
        assert set(history.validations) == {1, 2}
        assert [*run.work_dir.glob('epoch_*.pth')] == [run.checkpoint]
    assert f'val {history.validations[2]["accuracy/top1"]:.1f}%' in lines[-1]
    # Open files and closed streams are gone.
    assert MMLogger.get_current_instance().handlers == []

    kept = again.checkpoint.stat().st_mtime_ns
    run_trainings([again, first])
    assert capsys.readouterr().out.count('Reused') == 2
    assert again.checkpoint.stat().st_mtime_ns == kept


def test_cut_moved_and_continued(tmp_path):
    whole, cut = (
        tiny(tmp_path / name, **{'train_cfg.max_epochs': 3})
        for name in ('whole', 'cut'))
    run_trainings([whole])

    def interrupt():
        while not (cut.work_dir / 'last_checkpoint').exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_trainings([cut])
    assert not (cut.work_dir / 'finished').exists()
    moved = Training(cut.cfg, tmp_path / 'moved')
    cut.work_dir.rename(moved.work_dir)
    run_trainings([moved])
    assert 'resumed epoch: 1' in (moved.work_dir / 'train.log').read_text()
    assert same_weights(whole, moved)

    # Killed after the last validation.
    result = moved.result
    assert result['accuracy'] == read_history(
        moved.work_dir).validations[3]['accuracy/top1']
    (moved.work_dir / 'finished').unlink()
    called = []
    run_trainings([moved], called.append)
    assert called == [moved]
    assert moved.result['accuracy'] == result['accuracy']


def test_what_a_finish_reads_is_there_until_it_is_done(tmp_path, monkeypatch):
    run = tiny(tmp_path / 'run', **{'default_hooks.checkpoint.interval': 1})
    read = []

    def finish(training):
        read.append(len([*training.work_dir.glob('epoch_?.pth')]))

    def killed(path, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, 'unlink', killed)
        run_trainings([run], finish)
    run_trainings([run], finish)
    assert read == [2]


def test_other_settings_never_go_on_in_a_folder(tmp_path):
    teacher = tmp_path / 'teacher.pth'
    torch.save(torch.nn.Linear(2, 2).state_dict(), teacher)
    run = tiny(tmp_path / 'run')
    run_trainings([run])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    for key, value, message in (
        ('optim_wrapper.optimizer.lr', 1, '"lr": 0.02 there, "lr": 1 here'),
        ('randomness.seed', 3, '"seed": 1 there, "seed": 3 here'),
        ('model.teacher_ckpt', str(teacher), '"teacher_ckpt": "sha256')):
        # Before another one is begun.
        with pytest.raises(TrainingError, match='another training') as told:
            run_trainings(
                [tiny(tmp_path / 'new'), tiny(run.work_dir, **{key: value})])
        assert message in str(told.value) and '\n' not in str(told.value)
    # How a step is computed is no other setting.
    run_trainings(
        [tiny(run.work_dir, **{'optim_wrapper.optimizer.fused': True})])
    assert {path: path.stat().st_mtime_ns
            for path in tmp_path.rglob('*')} == kept
    (run.work_dir / 'settings.json').unlink()
    with pytest.raises(TrainingError, match='another program began'):
        run_trainings([run])


def test_a_mistake_and_a_new_place_are_forgiven(tmp_path):
    here, there = tmp_path / 'here', tmp_path / 'there'

    def run(base, backbone):
        made = tiny(base / 'run', **{
            'model.architecture.backbone.type': backbone, 'note': f'{base}/x'})
        return Training(made.cfg, made.work_dir, base)

    right = run(here, 'ResNet').cfg.model.architecture.backbone.type
    with pytest.raises(KeyError, match='ResNot'):
        run_trainings([run(here, 'ResNot')])
    run_trainings([run(here, right)])
    here.rename(there)
    kept = run(there, right).checkpoint.stat().st_mtime_ns
    run_trainings([run(there, right)])
    assert run(there, right).checkpoint.stat().st_mtime_ns == kept


def test_what_cannot_begin_is_said_before_anything_runs(tmp_path):
    bad = tiny(tmp_path / 'bad', **{'model.teacher_ckpt': 'gone.pth'})
    with pytest.raises(TrainingError, match='=gone'):
        run_trainings([tiny(tmp_path / 'good'), bad])
    assert not list(tmp_path.iterdir())
    with FileLock(str(tmp_path / 'training.lock')), pytest.raises(
            TrainingError, match='by another process'):
        run_trainings([tiny(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} <= {'training.lock'}
