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

    def add(name: str, what: str, out: str) -> Callable:
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            '--out', type=Path, metavar='DIR',
            help=f'folder for the results (default: work_dirs/{out})')
        if name != 'runs':
            add_config_options(command)
        return command.add_argument

    take = add('regularization', 'a page about the weights and regularization '
               'samples of a split', 'CONFIG/regularization_SPLIT')
    take('config', help='config of a distillation')
    take('checkpoints', nargs='+', help='of its student, such as some epochs')
    take('--split', choices=['train', 'val', 'test'], default='val',
         help='all go through the pipeline of val (default: val)')
    take = add('bias-variance', 'trainings on different '
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
    take = add('runs', 'trainings compared by what they logged; folders '
               'that differ in _seedN or _runN at their end are one method',
               'runs')
    take('work_dirs', nargs='+', type=Path)
    return parser.parse_args()


def main() -> None:
    """Analyze."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mmengine.logging import MMLogger

    from wsld_plugin import analysis, distillation
    from wsld_plugin.command_line import one_line_errors
    from wsld_plugin.config import load_config

    # What is loaded from where is told by the results.
    MMLogger.get_current_instance().setLevel('ERROR')
    with one_line_errors(analysis.AnalysisError, distillation.TrainingError):
        if args.command == 'regularization':
            report = analysis.regularization_report(
                load_config(args.config, args.cfg_options), args.checkpoints,
                split=args.split, out=args.out)
            # Cross-entropies and accuracies are on the page.
            table = report.checkpoints.iloc[:, :5]
            written = str(report.page)
            title = f'Regularization samples, {args.split}'
        elif args.command == 'bias-variance':
            found = distillation.bias_variance_report(
                [load_config(path, args.cfg_options) for path in args.configs],
                runs=args.runs, splits=args.splits, split=args.split,
                interval=args.interval, out=args.out)
            table, written = found.table, f'{found.picture}, .md, .csv'
            title = (f'{args.split}, {args.runs} {args.splits} runs, in nats '
                     '± standard error')
        else:
            out = args.out or Path('work_dirs', 'runs')
            table = analysis.compare_runs(args.work_dirs, out)
            title = f'{table.attrs["metric"]} of the validation'
            written = f'{out}/report.md, runs.csv, curves.png'
        analysis.print_table(table, title)
        print(f'Written: {written}')


if __name__ == '__main__':
    start(main)
