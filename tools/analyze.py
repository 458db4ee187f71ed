"""Analyze distillation after the fact: samples, bias and variance, runs."""
from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path

from _start import add_config_options, start


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    def add(run: Callable, name: str, what: str, out: str) -> Callable:
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        command.add_argument(
            '--out', type=Path, metavar='DIR',
            help=f'folder for the results (default: work_dirs/{out})')
        if run is not runs:
            add_config_options(command)
        return command.add_argument

    take = add(regularization, 'regularization', 'a page about the weights '
               'and regularization samples of a split',
               'CONFIG/regularization_SPLIT')
    take('config', help='config of a distillation')
    take('checkpoints', nargs='+', help='of its student, such as some epochs')
    take('--split', choices=['train', 'val', 'test'], default='val',
         help='all go through the pipeline of val (default: val)')
    take = add(bias_variance, 'bias-variance', 'trainings on different '
               'samples, and the error of their students decomposed; the '
               'same command again goes on where it was cut', 'bias_variance')
    take('configs', nargs='+', help='with one training set; where one of them '
         'has no teacher, the others are compared with it')
    take('--runs', type=int, default=5, metavar='R',
         help='trainings of each config, at least 2 (default: 5)')
    take('--splits', choices=['disjoint', 'bootstrap'], default='disjoint',
         help='what a run learns from: a part of the training set that no '
         'other run has, or as many samples drawn with replacement (default: '
         'disjoint)')
    take('--split', choices=['val', 'test'], default='test',
         help='whose error is decomposed (default: test)')
    take('--interval', type=int, metavar='EPOCHS', help='epochs between two '
         'decompositions (default: a sixth of the training)')
    take = add(runs, 'runs', 'trainings compared by what they logged; folders '
               'that differ in _seedN or _runN at their end are one method',
               'runs')
    take('work_dirs', nargs='+', type=Path)
    return parser.parse_args()


def regularization(args: argparse.Namespace) -> None:
    """Look at the samples of a split."""
    from wsld_plugin.analysis import print_table, regularization_report
    from wsld_plugin.config import load_config
    found = regularization_report(
        load_config(args.config, args.cfg_options), args.checkpoints,
        split=args.split, out=args.out)
    # Without cross-entropies and accuracies, which the page has.
    print_table(found.checkpoints.iloc[:, :5],
                f'Regularization samples, {args.split}')
    print(f'Written: {found.page}')


def bias_variance(args: argparse.Namespace) -> None:
    """Train what is not trained yet, and decompose the errors."""
    from wsld_plugin.analysis import print_table
    from wsld_plugin.config import load_config
    from wsld_plugin.distillation import bias_variance_report
    found = bias_variance_report(
        [load_config(path, args.cfg_options) for path in args.configs],
        runs=args.runs, splits=args.splits, split=args.split,
        interval=args.interval, out=args.out)
    print_table(found.table, f'{args.split}, {args.runs} {args.splits} runs, '
                'in nats ± standard error')
    print(f'Written: {found.picture}, .md, .csv')


def runs(args: argparse.Namespace) -> None:
    """Compare work dirs."""
    from wsld_plugin.analysis import compare_runs, print_table
    out = args.out or Path('work_dirs', 'runs')
    table = compare_runs(args.work_dirs, out)
    print_table(table, f'{table.attrs["metric"]} of the validation')
    print(f'Written: {out}/runs.png, .md, .csv')


def main() -> None:
    """Analyze."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mmengine.logging import MMLogger

    from wsld_plugin.analysis import AnalysisError
    from wsld_plugin.command_line import one_line_errors
    from wsld_plugin.distillation import TrainingError

    # What is loaded from where is told by the results.
    MMLogger.get_current_instance().setLevel('ERROR')
    with one_line_errors(AnalysisError, TrainingError):
        args.run(args)


if __name__ == '__main__':
    start(main)
