"""Experiments over seeds: means, paired differences."""
from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import AnalysisError
from .history import read_history, seconds_trained
from .runs import draw_runs, read_runs
from .tables import markdown_table, mean_and_deviation, write_results


def paired_difference(values: pd.Series, others: pd.Series) -> dict[str, Any]:
    """Compare two settings seed by seed.

    Args:
        values: Of one setting, indexed by seed.
        others: Of the one that it is compared with.

    Returns:
        ``mean``, sample deviation ``std`` and number ``n`` of differences
        where both have the seed, ``p`` of the two-sided paired t test, all
        of it as ``text``. What cannot be told is NaN.

    Example:
        >>> values, others = pd.Series([3, 5, 7]), pd.Series([1, 2, 3])
        >>> paired_difference(values, others)['text']
        '+3.00 ± 1.00 (p = 0.035, n = 3)'
    """
    from scipy.stats import ttest_1samp
    differences = (values - others).dropna().astype(float)
    n, mean, std = len(differences), differences.mean(), differences.std()
    # What rounding leaves of equal differences must not look significant.
    if std <= 1e-9 * max(values.abs().max(), others.abs().max()):
        std = 0.0
    p = float(ttest_1samp(differences, 0).pvalue) if std > 0 else math.nan
    text = f'{mean:+.2f}' + (f' ± {std:.2f}' if n > 1 else '')
    text += f' (p = {p:.2g}, n = {n})' if std > 0 else f' (n = {n})'
    return {'mean': mean, 'std': std, 'p': p, 'n': n, 'text': text * bool(n)}


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
        out: For report.md, runs.csv, differences.csv and curves.png.

    Returns:
        The table of ``report.md``, a row for each name.

    Raises:
        AnalysisError: If nothing is finished.
    """
    done = [run for run in runs if run[3].exists()]
    if not done:
        raise AnalysisError('no run of the plan is finished')
    table = read_runs([work_dir for _, _, work_dir, _ in done])
    metric = table.attrs['metric']
    table['method'], table['seed'], _, files = zip(*done)
    table['test'] = [json.loads(file.read_text()).get(metric, math.nan)
                     for file in files]
    table['seconds'] = table.run.map(seconds_trained)
    groups = dict(iter(table.set_index('seed').groupby('method', sort=False)))
    differences = pd.DataFrame(
        [(name, other, of,
          *paired_difference(groups[name][of], groups[other][of]).values())
         for name in groups if name not in apart for other in compare
         if other in groups and other != name for of in ('last', 'test')],
        columns=['run', 'than', 'of', 'mean', 'std', 'p', 'n', 'text'])
    shown = _shown(groups, Counter(run[0] for run in runs), differences)
    missing = [f'{name} seed {seed} '
               f'({max(read_history(path).steps, default=0)} epochs so far)'
               for name, seed, path, file in runs if not file.exists()]
    notes = f"""{metric}: mean ± sample standard deviation over the seeds.
The best epoch of each run is chosen on the validation that it is reported on;
last epoch and test are not chosen. Differences are paired by seed, p is of a
two-sided paired t test, not corrected for several comparisons."""
    if missing:
        notes += f'\n\nMissing: {", ".join(missing)}.'
    write_results({
        out / 'report.md': f'{markdown_table(shown)}\n{notes}\n',
        out / 'runs.csv': table.drop(columns='history'),
        out / 'differences.csv': differences,
        out / 'curves.png': draw_runs(table),
    })
    return shown


def _shown(groups: Mapping[str, pd.DataFrame], planned: Mapping[str, int],
           differences: pd.DataFrame) -> pd.DataFrame:
    tested = any(group.test.count() for group in groups.values())
    of = 'test' if tested else 'last'
    texts = differences[differences.of == of].pivot(
        index='run', columns='than', values='text')
    return pd.DataFrame([{
        'run': name,
        'seeds': f'{len(group)} of {planned[name]}',
        **{f'{key} epoch': mean_and_deviation(group[key], 2)
           for key in ('last', 'best')},
        **{key: mean_and_deviation(group[key].dropna(), 2)
           if group[key].count() else '' for key in ['test'] * tested},
        **{f'{of} - {than}': texts[than].get(name)
           for than in differences.than.unique()},
        'time a run': f'{group.seconds.mean() / 60:.1f} min',
    } for name, group in groups.items()]).fillna('')
