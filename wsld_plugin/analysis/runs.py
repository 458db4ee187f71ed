"""Compare trainings by what they logged, over seeds."""
from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .drawing import plot_runs, png, whole_epochs
from .errors import AnalysisError
from .history import read_config, read_history
from .tables import markdown_table, write_results

_NOTES = """{}: mean ± sample standard deviation over the seeds.
The best epoch of each run is chosen on the validation that it is reported on;
last epoch and test are not chosen. Differences are paired by seed, with their
95% interval and p of a two-sided paired t test; the corrected p (Holm) is of
all comparisons in a column."""


def method_name(work_dir: Path) -> str:
    """The folder's name without ``_seed0`` or ``_run0`` at its end.

    If that is all there is, the name of the folder around it.

    Example:
        >>> method_name(Path('work_dirs/ce_r18_digits_seed2'))
        'ce_r18_digits'
    """
    path = work_dir.resolve()
    name = re.sub(r'[_-]?(seed|run)[_-]?\d+$', '', path.name)
    return name or path.parent.name


def read_runs(work_dirs: Sequence[Path]) -> pd.DataFrame:
    """Read what trainings logged, a row for each folder.

    Returns:
        ``method``, ``run`` (the folder), ``seed``, ``unfinished`` (whether
        its config asks for more epochs), ``history``, and epochs and values
        of the ``last`` and the ``best`` validation. The best, the first of
        equals, is chosen on what it reports and so too good. ``attrs`` name
        the metric: top-1 accuracy or mIoU, or the first that all have.

    Raises:
        AnalysisError: If a folder has no validation, or they no metric in
            common.
    """
    histories = [read_history(path) for path in work_dirs]
    for path, history in zip(work_dirs, histories):
        if not history.validations:
            raise AnalysisError(f'{path} holds no */vis_data/scalars.json '
                                'with a validation')
    metrics = [key for key in next(iter(histories[0].validations.values()))
               if key not in ('data_time', 'time', 'step', 'memory')
               and all(history.validation(key) for history in histories)]
    if not metrics:
        raise AnalysisError('the runs have no metric in common')
    metric = max(metrics, key=lambda key: key in ('accuracy/top1', 'mIoU'))
    rows = []
    for path, history in zip(work_dirs, histories):
        cfg = read_config(path)
        epochs = cfg.get('train_cfg', {}).get('max_epochs') or 0
        curve = pd.Series(history.validation(metric)).sort_index()
        rows.append({
            'method': method_name(path), 'run': path,
            'seed': cfg.get('randomness', {}).get('seed'),
            'unfinished': max(history.steps, default=epochs) < epochs,
            'history': history,
            'last epoch': curve.index[-1], 'last': curve.iloc[-1],
            'best epoch': curve.idxmax(), 'best': curve.max()
        })
    table = pd.DataFrame(rows).astype({'seed': 'Int64'})
    table.attrs['metric'] = metric
    return table


def compare_runs(work_dirs: Sequence[Path], out: Path) -> pd.DataFrame:
    """Compare trainings, by :func:`method_name` and over seeds.

    Args:
        work_dirs: Folders that were given to trainings.
        out: Folder for ``runs.csv`` (a row for each run), ``report.md``
            (what is returned) and ``curves.png``.

    Returns:
        A row for each method: the number of its runs, of unfinished ones,
        last and best validation as text. ``attrs`` name the metric.

    Raises:
        AnalysisError: As by :func:`read_runs`, or if two folders are the
            same or hold one seed of one method.
    """
    table = read_runs(work_dirs)
    known: dict[object, Path] = {}
    for row in table.itertuples():
        key = row.method, row.run.resolve() if row.seed is pd.NA else row.seed
        if key in known:
            raise AnalysisError(
                f'{known[key]} and {row.run} are runs of one method, '
                f'{row.method}, with the same seed, {row.seed}')
        known[key] = row.run
    return _report(table, out)


def report_experiments(runs: Sequence[tuple[str, int, Path, Path]],
                       compare: Sequence[str], apart: Collection[str],
                       out: Path) -> pd.DataFrame:
    """Compare what is finished of a plan, and say what is missing.

    Args:
        runs: Name, seed and work dir of all that there should be, and the
            JSON file with metrics of the test split, perhaps none, that is
            there when all is done.
        compare: Names that the others are compared with.
        apart: Names that are compared with none, such as teachers.
        out: As for :func:`compare_runs`; ``differences.csv`` is there, too.

    Returns:
        As :func:`compare_runs`, with the test and with paired differences.

    Raises:
        AnalysisError: If nothing is finished.
    """
    done = [run for run in runs if run[3].exists()]
    if not done:
        raise AnalysisError('no run of the plan is finished')
    table = read_runs([work_dir for _, _, work_dir, _ in done])
    table['method'], table['seed'], _, files = zip(*done)
    table['test'] = [
        json.loads(file.read_text()).get(table.attrs['metric'], math.nan)
        for file in files]
    return _report(table, out, compare, apart,
                   [run[:2] for run in runs if run not in done])


def paired_difference(values: pd.Series, others: pd.Series) -> dict[str, Any]:
    """Compare two settings, both indexed by seed, seed by seed.

    Returns:
        ``mean``, sample deviation ``std`` and number ``n`` of differences
        where both have the seed, 95% interval ``low`` to ``high`` of the
        mean and ``p`` of the two-sided paired t test. What cannot be told is
        NaN.

    Example:
        >>> values, others = pd.Series([3, 5, 7]), pd.Series([1, 2, 3])
        >>> found = paired_difference(values, others)
        >>> '{mean:.1f}, {low:.2f} to {high:.2f}, p {p:.3f}'.format(**found)
        '3.0, 0.52 to 5.48, p 0.035'
    """
    from scipy.stats import ttest_1samp
    differences = (values - others).dropna().astype(float)
    n, mean, std = len(differences), differences.mean(), differences.std()
    # What rounding leaves of equal differences must not look significant.
    if std <= 1e-9 * max(values.abs().max(), others.abs().max()):
        std = 0.0
    low = high = p = math.nan
    if std > 0:
        test = ttest_1samp(differences, 0)
        (low, high), p = test.confidence_interval(), float(test.pvalue)
    return dict(mean=mean, std=std, low=low, high=high, p=p, n=n)


def holm(p: pd.Series) -> pd.Series:
    """Correct p values for their number (Holm 1979), but for those NaN.

    Example:
        >>> holm(pd.Series([0.04, 0.01, math.nan])).tolist()
        [0.04, 0.02, nan]
    """
    ordered = p.dropna().sort_values()
    left = range(len(ordered), 0, -1)
    return (ordered * left).cummax().clip(upper=1).reindex(p.index)


def _in_words(one: Any) -> str:
    """A row of the differences' table."""
    if not one.n:
        return ''
    text = f'{one.mean:+.2f}'
    if not math.isnan(one.p):
        text += (f' ({one.low:+.2f} to {one.high:+.2f}; p = {one.p:.2g}, '
                 f'corrected {one.corrected:.2g})')
    return text


def _report(table: pd.DataFrame, out: Path, compare: Sequence[str] = (),
            apart: Collection[str] = (),
            missing: Sequence[tuple[str, int]] = ()) -> pd.DataFrame:
    """Compare the methods of a table of runs, and write what was found."""
    tested = 'test' in table and table.test.notna().any()
    # Not chosen; of these the one that is shown comes last.
    compared = ['last', 'test'] if tested else ['last']
    groups = dict(iter(table.set_index('seed').groupby('method', sort=False)))
    differences = pd.DataFrame(
        [(name, other, of,
          *paired_difference(groups[name][of], groups[other][of]).values())
         for name in groups if name not in apart for other in compare
         if other in groups and other != name for of in compared],
        columns=[
            'method', 'than', 'of', 'mean', 'std', 'low', 'high', 'p', 'n'
        ])
    differences['corrected'] = differences.groupby(
        ['than', 'of']).p.transform(holm)
    differences['text'] = [*map(_in_words, differences.itertuples())]
    of = compared[-1]
    texts = differences[differences.of == of].pivot(
        index='method', columns='than', values='text')
    lost: dict[str, list[int]] = defaultdict(list)
    for name, seed in missing:
        lost[name].append(seed)
    shown = pd.DataFrame([{
        'method': name,
        'runs': len(group),
        'unfinished': group.unfinished.sum() + len(lost.get(name, ())),
        **{key: _spread(group[key].dropna())
           for key in ('last', 'best', *compared[1:])},
        **{f'{of} - {than}': texts[than].get(name) for than in texts}
    } for name, group in groups.items()]).fillna('')
    shown.attrs = table.attrs
    notes = _NOTES.format(table.attrs['metric']) + ''.join(
        f'\n\nMissing: {name}, seed{"s"[:len(seeds) - 1]} '
        f'{", ".join(map(str, seeds))}.'
        for name, seeds in lost.items())
    files: dict[Path, Any] = {
        out / 'report.md': f'{markdown_table(shown)}\n{notes}\n',
        out / 'runs.csv': table.drop(columns='history'),
        out / 'curves.png': _draw(table)
    }
    if compare:
        files[out / 'differences.csv'] = differences
    write_results(files)
    return shown


def _spread(values: pd.Series) -> str:
    text = f'{values.mean():.2f}' if len(values) else ''
    return text + (f' ± {values.std():.2f}' if len(values) > 1 else '')


def _draw(table: pd.DataFrame) -> bytes:
    """Draw metric and loss of :func:`read_runs` over the epochs, as PNG."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    metric = table.attrs['metric']
    for number, (method, histories) in enumerate(
            table.groupby('method', sort=False).history):
        plot_runs(left, [history.validation(metric) for history in histories],
                  f'C{number}', method)
        losses = [history.cross_entropies() for history in histories]
        if all(losses):
            plot_runs(right, losses, f'C{number}', method)
    left.set_ylabel(f'{metric} of the validation')
    left.legend(loc='lower right')
    right.set(ylabel='cross-entropy in training (nats)', yscale='log')
    for axes in (left, right):
        whole_epochs(axes)
    return png(figure)
