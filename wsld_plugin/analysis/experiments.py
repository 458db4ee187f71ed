"""Experiments over seeds: means, paired differences, a drawing."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .drawing import png
from .runs import TrainingRun, compare_runs


class Experiment(NamedTuple):
    """The finished runs of one setting.

    Attributes:
        runs: By seed.
        planned: Number of seeds that there should be.
        test: Metric of the test split by seed, where it was measured.
        seconds: Duration of each training.
        published: A figure that somebody else reported, and who.
    """

    runs: Mapping[int, TrainingRun]
    planned: int
    test: Mapping[int, float]
    seconds: Sequence[float]
    published: tuple[float, str] | None = None

    def last(self, metric: str) -> dict[int, float]:
        """A metric of the validation after the last epoch, by seed."""
        curves = {
            seed: run.history.validation(metric)
            for seed, run in self.runs.items()
        }
        return {seed: curve[max(curve)] for seed, curve in curves.items()}


class Difference(NamedTuple):
    """How much better one setting is than another.

    Attributes:
        mean: Over the seeds that both have.
        std: Sample standard deviation of the seeds' differences; NaN for
            one seed.
        p: Of the paired t test, two-sided; NaN for one seed, or where all
            differences are the same.
        n: Number of seeds.
    """

    mean: float
    std: float
    p: float
    n: int

    def __str__(self) -> str:
        text = f'{self.mean:+.2f}'
        if self.n > 1:
            text += f' ± {self.std:.2f}'
        notes = [] if math.isnan(self.p) else [f'p = {self.p:.2g}']
        return f'{text} ({", ".join([*notes, f"n = {self.n}"])})'


def paired_difference(values: Mapping[int, float],
                      others: Mapping[int, float]) -> Difference | None:
    """Compare two settings seed by seed.

    Args:
        values: Of one setting, by seed.
        others: Of the one that it is compared with.

    Returns:
        None if they have no seed in common.

    Example:
        >>> str(paired_difference({0: 3, 1: 5, 2: 7}, {0: 1, 1: 2, 2: 3}))
        '+3.00 ± 1.00 (p = 0.035, n = 3)'
    """
    differences = [
        values[seed] - others[seed] for seed in values if seed in others
    ]
    if not differences:
        return None
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return Difference(mean, math.nan, math.nan, n)
    std = statistics.stdev(differences)
    # What rounding leaves of equal differences must not look significant.
    if std <= 1e-9 * max(map(abs, (*values.values(), *others.values()))):
        return Difference(mean, 0.0, math.nan, n)
    from scipy.stats import ttest_1samp
    return Difference(mean, std, float(ttest_1samp(differences, 0).pvalue), n)


def experiment_rows(experiments: Mapping[str, Experiment], metric: str,
                    references: Mapping[str, Sequence[str]]
                    ) -> list[dict[str, Any]]:
    """Means and differences of each setting, as numbers.

    Args:
        experiments: Each with at least one run.
        metric: Of the validations; more is better.
        references: What each setting is compared with; those without runs
            are left out.

    Returns:
        A row for each setting, all with the same keys. ``best`` is each
        run's best epoch, chosen on what it reports; ``last`` and ``test``
        are of the last epoch. Standard deviations are of the sample. What
        is not known is NaN.
    """
    methods = {
        name: [*item.runs.values()]
        for name, item in experiments.items()
    }
    against = list(dict.fromkeys(
        other for name in experiments for other in references.get(name, ())
        if other in experiments))
    rows = []
    for row in compare_runs(methods, metric):
        name = row.pop('method')
        item = experiments[name]
        del row['unfinished']
        tests = list(item.test.values())
        row = {
            'run': name,
            'planned': item.planned,
            **row, 'test runs': len(tests),
            'test mean': statistics.mean(tests) if tests else math.nan,
            'test std':
            statistics.stdev(tests) if len(tests) > 1 else math.nan
        }
        for other in against:
            for which, values, others in (
                ('last', item.last(metric), experiments[other].last(metric)),
                ('test', item.test, experiments[other].test)):
                difference = paired_difference(
                    values, others
                ) if other in references.get(name, ()) else None
                for key, value in zip(Difference._fields, difference
                                      or (math.nan, math.nan, math.nan, 0)):
                    row[f'{which} - {other} {key}'] = value
        row['seconds a run'] = statistics.mean(item.seconds)
        figure, source = item.published or (math.nan, '')
        rows.append({**row, 'published': figure, 'source': source})
    return rows


def readable_experiments(rows: Sequence[Mapping[str, Any]]
                         ) -> list[dict[str, str]]:
    """:func:`experiment_rows` to read.

    Differences are those of the test split where there is one. Published
    figures, which nobody ran again here, have a star.
    """
    tested = any(row['test runs'] for row in rows)
    which = 'test' if tested else 'last'
    against = [
        key[len(f'{which} - '):-len(' mean')] for key in rows[0]
        if key.startswith(f'{which} - ') and key.endswith(' mean')
    ]
    readable = []
    for row in rows:
        cells = {
            'run': row['run'],
            'seeds': f'{row["runs"]} of {row["planned"]}',
            'last epoch': _spread(row, 'last', row['runs']),
            'best epoch': _spread(row, 'best', row['runs']),
        }
        if tested:
            cells['test'] = _spread(row, 'test', row['test runs'])
        for other in against:
            difference = Difference(
                *(row[f'{which} - {other} {key}']
                  for key in Difference._fields))
            cells[f'{which} - {other}'] = (
                str(difference) if difference.n else '')
        cells['time a run'] = f'{row["seconds a run"] / 60:.1f} min'
        if any(other['source'] for other in rows):
            cells['published*'] = (
                f'{row["published"]:g}* ({row["source"]})'
                if row['source'] else '')
        readable.append(cells)
    return readable


def draw_experiments(experiments: Mapping[str, Experiment],
                     metric: str) -> bytes:
    """Draw each setting's seeds, mean and standard deviation, as PNG.

    Of the test split where all settings have it, of the last epoch's
    validation otherwise.
    """
    from matplotlib.figure import Figure
    tested = all(item.test for item in experiments.values())
    figure = Figure(
        figsize=(8, 1.2 + 0.35 * len(experiments)), layout='constrained')
    axes = figure.subplots()
    for height, item in enumerate(experiments.values()):
        values = list(
            (item.test if tested else item.last(metric)).values())
        axes.plot(values, [height] * len(values), 'o', color='C0', alpha=0.4)
        axes.errorbar(
            statistics.mean(values),
            height,
            xerr=statistics.stdev(values) if len(values) > 1 else None,
            fmt='|',
            markersize=14,
            color='black',
            capsize=3)
    axes.set_yticks(range(len(experiments)), list(experiments))
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.set_xlabel(f'{metric} of the '
                    f'{"test split" if tested else "validation"}')
    axes.grid(alpha=0.3)
    return png(figure)


def _spread(row: Mapping[str, Any], which: str, runs: int) -> str:
    if not runs:
        return ''
    text = f'{row[f"{which} mean"]:.2f}'
    return text + f' ± {row[f"{which} std"]:.2f}' if runs > 1 else text
