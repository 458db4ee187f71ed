"""Compare trainings by what they logged."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .drawing import plot_runs, png, whole_epochs
from .errors import AnalysisError
from .history import read_config, read_history
from .tables import mean_and_deviation, write_results


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
        the metric: top-1 accuracy, or the first that all have.

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
    metric = max(metrics, key=lambda key: key == 'accuracy/top1')
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
        out: Folder for ``runs.csv`` (a row for each run), ``runs.md`` (what
            is returned) and ``runs.png`` (the curves).

    Returns:
        A row for each method: the number of its runs, of unfinished ones,
        last and best epoch as text. ``attrs`` name the metric.

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
    methods = pd.DataFrame({
        'method': method,
        'runs': len(group),
        'unfinished': group.unfinished.sum(),
        **{
            f'{which} epoch': mean_and_deviation(group[which], 2) + ' (at ' +
            ' to '.join(map(str, sorted({epochs.min(), epochs.max()}))) + ')'
            for which in ('last', 'best')
            for epochs in [group[f'{which} epoch']]
        }
    } for method, group in table.groupby('method', sort=False))
    methods.attrs = table.attrs
    write_results({
        out / 'runs.csv': table.drop(columns='history'),
        out / 'runs.md': methods,
        out / 'runs.png': draw_runs(table),
    })
    return methods


def draw_runs(table: pd.DataFrame) -> bytes:
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
