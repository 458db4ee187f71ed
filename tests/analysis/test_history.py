"""Reading logs, comparing the runs that wrote them, reports of plans."""
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from wsld_plugin.analysis import AnalysisError, compare_runs, read_history
from wsld_plugin.analysis.runs import (
    holm,
    method_name,
    paired_difference,
    read_runs,
    report_experiments,
)


def log(work_dir, accuracies, attempt='20260102_030405', seed=None, epochs=2):
    """What mmengine writes, two steps an epoch."""
    records = [{'teacher/accuracy/top1': 99.0, 'step': 0}]
    for epoch, accuracy in accuracies.items():
        for step in (2 * epoch - 1, 2 * epoch):
            records.append({'loss': 9.0, 'student.loss': 1 / step,
                            'epoch': epoch, 'iter': step, 'step': step})
        records.append({'time': 1.5, 'accuracy/top1': accuracy, 'step': epoch})
    folder = work_dir / attempt / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(
        f'{json.dumps(record)}\n' for record in records))
    if seed is not None:
        (folder / 'config.py').write_text(
            f'randomness = dict(seed={seed})\n'
            f'train_cfg = dict(max_epochs={epochs})\n')
    return work_dir


def test_a_log_being_written(tmp_path):
    work_dir = log(tmp_path, {1: 50.0, 2: 60.0}, '1')
    with (work_dir / '1/vis_data/scalars.json').open('a') as file:
        file.write('{"accuracy/top1": 7')
    history = read_history(work_dir)
    assert history.validation('accuracy/top1') == {1: 50.0, 2: 60.0}
    assert history.cross_entropies() == {1: 1 / 2, 2: 1 / 4}


def test_resumed_and_restarted_attempts(tmp_path):
    log(tmp_path, {1: 50.0, 2: 60.0}, '1')
    log(tmp_path, {2: 61.0, 3: 70.0}, '2')
    history = read_history(tmp_path)
    assert history.validation('accuracy/top1') == {1: 50, 2: 61, 3: 70}
    # One whose first validation is of the epoch that it resumed.
    log(tmp_path, {4: 80.0}, '3')
    path = tmp_path / '3' / 'vis_data' / 'scalars.json'
    path.write_text('{"accuracy/top1": 71, "step": 3}\n' + path.read_text())
    history = read_history(tmp_path)
    assert history.validation('accuracy/top1') == {1: 50, 2: 61, 3: 71, 4: 80}
    assert list(history.steps) == [1, 2, 3, 4]
    log(tmp_path, {1: 40.0}, '4')
    history = read_history(tmp_path)
    assert history.validation('accuracy/top1') == {1: 40.0}
    assert list(history.steps) == [1]


def test_methods_by_hand(tmp_path):
    # In an order in which seeds of one method are apart, and with a comma.
    ce = log(tmp_path / 'a,b' / 'ce', {1: 50.0}, seed=0)
    kd = [log(tmp_path / 'kd_seed0', {1: 90.0, 2: 80.0}, seed=0),
          log(tmp_path / 'kd_seed1', {1: 84.0, 2: 84.0}, seed=1)]
    table = compare_runs([kd[0], ce, kd[1]], tmp_path / 'out')
    assert table.attrs['metric'] == 'accuracy/top1'
    # 80 and 84 deviate by sqrt(8), 90 and 84 by sqrt(18); the first of equals.
    assert table.values.tolist() == [
        ['kd', 2, 0, '82.00 ± 2.83', '87.00 ± 4.24'],
        ['ce', 1, 1, '50.00', '50.00']]
    rows = pd.read_csv(tmp_path / 'out' / 'runs.csv')
    assert rows.run.tolist() == [str(kd[0]), str(ce), str(kd[1])]
    assert rows['last epoch'].tolist() == [2, 1, 2]
    assert '| 82.00 ± 2.83 |' in (tmp_path / 'out/report.md').read_text()
    assert (tmp_path / 'out/curves.png').read_bytes().startswith(b'\x89PNG')


def test_the_metric_that_is_compared(tmp_path):
    # In the order of mmseg's log.
    work_dir = log(tmp_path / 'seg', {1: 50.0}, seed=0)
    path = work_dir / '20260102_030405' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text().replace(
        '"accuracy/top1": 50.0', '"aAcc": 90.0, "mIoU": 40.0'))
    table = read_runs([work_dir])
    assert table.attrs['metric'] == 'mIoU' and table['last'].tolist() == [40]


def test_names_of_methods():
    paths = ['a/wsld_r34_seed12', 'a/kd-run3', 'a/kd/seed3', 'a/overrun']
    assert [method_name(Path(path)) for path in paths
            ] == ['wsld_r34', 'kd', 'kd', 'overrun']


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(AnalysisError, match='nothing holds no'):
        read_runs([tmp_path / 'nothing'])
    one, other = (log(tmp_path / name, {1: 5.0}, seed=4)
                  for name in ('a_seed1', 'a_seed2'))
    unknown = log(tmp_path / 'b', {1: 5.0})
    for twice in ([unknown, one, other], [one, one], [unknown, unknown]):
        with pytest.raises(AnalysisError, match='runs of one method') as info:
            compare_runs(twice, tmp_path / 'out')
        assert str(twice[-1]) in str(info.value)
    assert not (tmp_path / 'out').exists()


def test_paired_differences_have_closed_forms():
    # Of seeds in another order, and one that the other does not have.
    values = pd.Series({2: 55.0, 0: 51.0, 1: 56.0, 7: 90.0})
    others = pd.Series({0: 50.0, 1: 54.0, 2: 52.0, 8: 0.0})
    found = paired_difference(values, others)
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) with 2 degrees of freedom,
    # for which P(|T| > t) = 1 - t / sqrt(2 + t^2).
    t = 2 * math.sqrt(3)
    assert (found['mean'], found['std'], found['n']) == (2, 1, 3)
    assert found['p'] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    # Where P(|T| > t) = 0.05.
    half = math.sqrt(2 * 0.95**2 / (1 - 0.95**2) / 3)
    assert (found['low'], found['high']) == pytest.approx((2 - half, 2 + half))
    # Two differences, 1 and 3: Cauchy, P(|T| > t) = 1 - 2 atan(t) / pi.
    found = paired_difference(values[[0, 2]], others)
    assert found['std'] == pytest.approx(math.sqrt(2))
    assert found['p'] == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_no_test_without_spread():
    one = paired_difference(pd.Series([3.0, 9.0]), pd.Series([1.0]))
    assert (one['mean'], one['n']) == (2, 1) and math.isnan(one['p'])
    none = paired_difference(pd.Series({0: 3.0}), pd.Series({1: 1.0}))
    assert none['n'] == 0 and math.isnan(none['mean'])
    # 0.3 - 0.1 and 0.5 - 0.3 differ by rounding only.
    same = paired_difference(pd.Series([0.3, 0.5]), pd.Series([0.1, 0.3]))
    assert same['std'] == 0 and math.isnan(same['p'])


def test_holms_correction():
    # The smallest times 4, the next times 3; 0.02 times 2 may not fall below
    # that; 0.9 stays. Not below the one before, and NaN counts as no test.
    p = pd.Series([0.9, 0.015, math.nan, 0.001, 0.02], index=[*'vwxyz'])
    found = holm(p)
    assert [*found.index] == [*'vwxyz']
    assert found.tolist() == pytest.approx(
        [0.9, 0.045, math.nan, 0.004, 0.045], nan_ok=True)
    assert holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]


@pytest.mark.parametrize('tested', [False, True])
def test_report_of_a_plan(tmp_path, tested):
    runs = [(name, seed, tmp_path / f'{name}-0123' / f'seed-{seed}',
             tmp_path / f'{name}-{seed}.json')
            for name, seeds in {'t': [0], 'ce': [0, 1, 2], 'kd': [1, 0]
                                }.items() for seed in seeds]
    with pytest.raises(AnalysisError, match='no run of the plan is finished'):
        report_experiments(runs, ['ce'], {'t'}, tmp_path / 'out')
    for number, (name, seed, work_dir, file) in enumerate(runs):
        log(work_dir, {1: 60.0, 2: 50.0 + number**2}, seed=seed)
        if (name, seed) != ('ce', 2):
            file.write_text(json.dumps(
                {'accuracy/top1': 70.0 - number} if tested else {}))
    table = report_experiments(runs, ['ce'], {'t'}, tmp_path / 'out')
    assert table.method.tolist() == ['t', 'ce', 'kd']
    assert table.runs.tolist() == [1, 2, 2]
    assert table.unfinished.tolist() == [0, 1, 0]
    # By seed: kd has 75 and 66, ce 51 and 54; 1 and 0 are 66 - 54, 75 - 51.
    assert table['last'].tolist() == [
        '50.00', '52.50 ± 2.12', '70.50 ± 6.36']
    assert table['best'].tolist()[1] == '60.00 ± 0.00'
    if tested:
        # Tests of seeds 0 and 1: 69, 68 and 65, 66.
        assert table['test - ce'].tolist() == [
            '', '', '-3.00 (-15.71 to +9.71; p = 0.2, corrected 0.2)']
    else:
        assert table['last - ce'].tolist()[:2] == ['', '']
        assert table['last - ce'].tolist()[2].startswith('+18.00 (-58')
        assert 'test' not in table
    text = (tmp_path / 'out/report.md').read_text()
    assert 'Missing: ce, seed 2.' in text
    differences = pd.read_csv(tmp_path / 'out/differences.csv')
    assert differences[differences.of == 'last']['mean'].tolist() == [18.0]
    assert (tmp_path / 'out/curves.png').read_bytes().startswith(b'\x89PNG')
