"""Reading logs, and comparing the runs that wrote them."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsld_plugin.analysis import (
    AnalysisError,
    common_metric,
    compare_runs,
    csv_table,
    draw_runs,
    markdown_table,
    method_name,
    read_history,
    read_runs,
    readable_runs,
    run_rows,
)


def log(work_dir: Path,
        accuracies: dict[int, float],
        attempt: str = '1',
        seed: int | None = None,
        epochs: int = 2) -> Path:
    """What mmengine writes, two steps an epoch."""
    records: list[dict] = [{'teacher/accuracy/top1': 99.0, 'step': 0}]
    for epoch, accuracy in accuracies.items():
        for half in (1, 2):
            step = 2 * epoch - 2 + half
            records.append({
                'loss': 9.0,
                'student.loss': 1 / step,
                'epoch': epoch,
                'iter': step,
                'step': step
            })
        records.append({
            'accuracy/top1': accuracy,
            'time': 0.1,
            'step': epoch
        })
    folder = work_dir / attempt / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(
        f'{json.dumps(record)}\n' for record in records))
    if seed is not None:
        (folder / 'config.py').write_text(
            f'randomness = dict(seed={seed})\n'
            f'train_cfg = dict(max_epochs={epochs})\n')
    return work_dir


def test_a_log_being_written(tmp_path: Path) -> None:
    work_dir = log(tmp_path, {1: 50.0, 2: 60.0})
    with (work_dir / '1/vis_data/scalars.json').open('a') as file:
        file.write('{"accuracy/top1": 7')
    history = read_history(work_dir)
    assert history.validation('accuracy/top1') == {1: 50.0, 2: 60.0}
    assert history.cross_entropies() == {1: 1 / 2, 2: 1 / 4}


def test_resumed_and_restarted_attempts(tmp_path: Path) -> None:
    log(tmp_path, {1: 50.0, 2: 60.0})
    log(tmp_path, {2: 61.0, 3: 70.0}, '2')
    history = read_history(tmp_path)
    assert history.validation('accuracy/top1') == {1: 50, 2: 61, 3: 70}
    log(tmp_path, {1: 40.0}, '3')
    history = read_history(tmp_path)
    assert history.validation('accuracy/top1') == {1: 40.0}
    assert list(history.steps) == [1]


def test_methods_by_hand(tmp_path: Path) -> None:
    dirs = [
        log(tmp_path / 'kd_seed0', {1: 90.0, 2: 80.0}, seed=0),
        log(tmp_path / 'kd_seed1', {1: 70.0, 2: 84.0}, seed=1),
        log(tmp_path / 'ce', {1: 50.0}, seed=0),
    ]
    methods = read_runs(dirs)
    assert list(methods) == ['kd', 'ce']
    metric = common_metric(methods)
    assert metric == 'accuracy/top1'
    kd, ce = compare_runs(methods, metric)
    assert (kd['last mean'], kd['best mean']) == (82.0, 87.0)
    assert kd['last std'] == pytest.approx(8**0.5)
    assert kd['best epochs'] == '1 to 2'
    assert (ce['runs'], ce['unfinished'], kd['unfinished']) == (1, 1, 0)
    shown = readable_runs([kd, ce])
    assert shown[0]['last epoch'] == '82.00 ± 2.83 (at 2)'
    assert shown[1]['best epoch'] == '50.00 (at 1)'
    assert markdown_table(shown).count('\n') == 4
    lines = csv_table(run_rows(methods, metric)).splitlines()
    assert len(lines) == 4 and lines[1].endswith(',0,False,2,80.0,1,90.0')
    assert draw_runs(methods, metric).startswith(b'\x89PNG')


def test_names_of_methods() -> None:
    assert method_name(Path('a/wsld_r34_seed12')) == 'wsld_r34'
    assert method_name(Path('a/kd-run3')) == 'kd'
    assert method_name(Path('a/kd/seed3')) == 'kd'
    assert method_name(Path('a/overrun')) == 'overrun'


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match='nothing holds no'):
        read_runs([tmp_path / 'nothing'])
    same = [log(tmp_path / name, {1: 5.0}, seed=4) for name in ('a_seed1',
                                                               'a_seed2')]
    with pytest.raises(AnalysisError, match='same seed, 4'):
        read_runs(same)
    with pytest.raises(AnalysisError, match='runs of one method'):
        read_runs([same[0], same[0]])
