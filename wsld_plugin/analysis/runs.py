"""Compare trainings by what they logged."""
from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .drawing import plot_runs, png, whole_epochs
from .errors import AnalysisError
from .history import History, read_config, read_history

_SEED = re.compile(r'[_-]?(seed|run)[_-]?\d+$')
_METRIC = 'accuracy/top1'
# Validations log them beside their metrics.
_TIMES = ('data_time', 'time', 'step', 'memory')


class TrainingRun(NamedTuple):
    """A training, as its work dir tells.

    Attributes:
        path: The work dir.
        history: What was logged.
        seed: Of its config; None where that is unknown.
        unfinished: Whether its config asks for more epochs than it has.
    """

    path: Path
    history: History
    seed: int | None
    unfinished: bool


def method_name(work_dir: Path) -> str:
    """What runs that differ in their seed only have in common.

    The folder's name without ``_seed0`` or ``_run0`` at its end; if that is
    all there is, the name of the folder around it.

    Example:
        >>> method_name(Path('work_dirs/ce_r18_digits_seed2'))
        'ce_r18_digits'
        >>> method_name(Path('bias_variance/ce_r18_digits/run0'))
        'ce_r18_digits'
    """
    path = work_dir.resolve()
    return _SEED.sub('', path.name) or path.parent.name


def read_runs(work_dirs: Sequence[Path]) -> dict[str, list[TrainingRun]]:
    """Read what trainings logged.

    Args:
        work_dirs: Folders that were given to trainings.

    Returns:
        Runs by :func:`method_name`, in the order given.

    Raises:
        AnalysisError: If a folder holds no validation, or two folders of
            one method trained with one seed or are the same.
    """
    methods: dict[str, list[TrainingRun]] = {}
    for path in work_dirs:
        history = read_history(path)
        if not history.validations:
            raise AnalysisError(
                f'{path} holds no */vis_data/scalars.json with a validation')
        cfg = read_config(path) or {}
        seed = (cfg.get('randomness') or {}).get('seed')
        wanted = (cfg.get('train_cfg') or {}).get('max_epochs')
        run = TrainingRun(
            path, history, seed, wanted is not None
            and max(history.steps, default=wanted) < wanted)
        others = methods.setdefault(method_name(path), [])
        for other in others:
            if path.resolve() == other.path.resolve() or (
                    seed is not None and other.seed == seed):
                raise AnalysisError(
                    f'{other.path} and {path} are runs of one method, '
                    f'{method_name(path)}, with the same seed, {seed}')
        others.append(run)
    return methods


def common_metric(methods: Mapping[str, Sequence[TrainingRun]]) -> str:
    """The metric to compare by: top-1 accuracy, or the first all have.

    Raises:
        AnalysisError: If there is none.
    """
    runs = [run for group in methods.values() for run in group]
    metrics = [
        key for key in next(iter(runs[0].history.validations.values()))
        if key not in _TIMES and all(
            run.history.validation(key) for run in runs)
    ]
    if not metrics:
        raise AnalysisError('the runs have no metric in common')
    return _METRIC if _METRIC in metrics else metrics[0]


def compare_runs(methods: Mapping[str, Sequence[TrainingRun]],
                 metric: str) -> list[dict[str, Any]]:
    """Last and best value of a metric, mean and deviation over the seeds.

    Args:
        methods: Runs by method.
        metric: Of the validations; more is better.

    Returns:
        A row of numbers for each method. ``best`` is each run's best epoch,
        which is chosen on what it reports and so too good; ``last`` is not
        chosen. The standard deviation of one run is NaN.
    """
    rows = []
    for method, runs in methods.items():
        curves = [run.history.validation(metric) for run in runs]
        last = [curve[max(curve)] for curve in curves]
        best = [max(curve.values()) for curve in curves]
        rows.append({
            'method': method,
            'runs': len(runs),
            'unfinished': sum(run.unfinished for run in runs),
            'last epochs': _range([max(curve) for curve in curves]),
            'best epochs': _range([_best(curve) for curve in curves]),
            **_spread('last', last),
            **_spread('best', best),
        })
    return rows


def readable_runs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """:func:`compare_runs` to read: ``mean ± standard deviation``."""
    return [{
        'method': row['method'],
        'runs': row['runs'],
        **{
            f'{which} epoch': f'{row[f"{which} mean"]:.2f}' +
            (f' ± {row[f"{which} std"]:.2f}' if row['runs'] > 1 else '') +
            f' (at {row[where]})'
            for which, where in (('last', 'last epochs'), ('best',
                                                           'best epochs'))
        }
    } for row in rows]


def run_rows(methods: Mapping[str, Sequence[TrainingRun]],
             metric: str) -> list[dict[str, Any]]:
    """Last and best value of a metric of each run, a row for each."""
    rows = []
    for method, runs in methods.items():
        for run in runs:
            curve = run.history.validation(metric)
            best = _best(curve)
            rows.append({
                'method': method,
                'run': str(run.path),
                'seed': '' if run.seed is None else run.seed,
                'unfinished': run.unfinished,
                'last epoch': max(curve),
                'last': curve[max(curve)],
                'best epoch': best,
                'best': curve[best],
            })
    return rows


def draw_runs(methods: Mapping[str, Sequence[TrainingRun]],
              metric: str) -> bytes:
    """Draw a metric and the loss on the labels over the epochs, as PNG."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    for number, (method, runs) in enumerate(methods.items()):
        curves = [run.history.validation(metric) for run in runs]
        plot_runs(left, curves, f'C{number}', method)
        losses = [run.history.cross_entropies() for run in runs]
        if all(losses):
            plot_runs(right, losses, f'C{number}', method)
    left.set(ylabel=f'{metric} of the validation')
    right.set(
        ylabel='cross-entropy with the labels\nin training (nats)',
        yscale='log')
    left.legend(loc='lower right')
    for axes in (left, right):
        whole_epochs(axes)
    return png(figure)


def _best(curve: Mapping[int, float]) -> int:
    """The first epoch with the largest value."""
    return max(curve, key=lambda epoch: (curve[epoch], -epoch))


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f'{name} mean': statistics.mean(values),
        f'{name} std':
        statistics.stdev(values) if len(values) > 1 else float('nan')
    }


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f'{low} to {high}'
