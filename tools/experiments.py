"""Run the experiments of a plan: configs x seeds x switches.

    experiments.py PLAN.yml            trains what is not finished
    experiments.py report PLAN.yml     compares what is

A plan is a YAML file; configs in it are relative to its folder:

    name: digits                       # results: work_dirs/digits/RUN/seed-S
    seeds: [0, 1, 2]
    options: {train_cfg.max_epochs: 60}             # for all runs
    test: true                         # evaluate the test split at the end
    compare: [kd, ce]                  # differences to these are reported
    runs:
      teacher: {config: ../ce_r34_digits.py, seeds: [0]}
      ce: {config: ../ce_r18_digits.py}
      kd: {config: ../kd_r34_r18_digits.py, needs: teacher}
      wsld:
        config: ../wsld_r34_r18_digits.py
        needs: teacher                 # sets model.teacher_ckpt
        options: {optim_wrapper.optimizer.lr: 0.02}
        grid:                          # all combinations of the switches
          bn: {model.teacher_norm_eval: [true, false]}
        published: {figure: 72.04, source: who reported it}
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from command_line import fail, one_line_errors
from crew import Crew, Launcher, epochs_of, slots
from mmengine.logging import MMLogger
from plans import Command, Plan, PlanError, Run, read_plan
from results import show, write
from rich.console import Console
from trainings import short

from wsld_plugin import analysis, compat


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    reporting = sys.argv[1:2] == ['report']
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name + (' report' if reporting else ''),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=Path, help='plan, a YAML file')
    if reporting:
        parser.add_argument(
            '--out',
            type=Path,
            metavar='DIR',
            help='folder for the results (default: work_dirs/PLAN/report)')
        args = parser.parse_args(sys.argv[2:])
        args.run = report
        return args
    parser.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='runs at once (default: as many as there are GPUs for, 1 on the '
        'CPU; with slurm all, for it has a queue)')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the commands of all that is not finished; run nothing')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='hand each run to tools/train.py, dist_train.sh or '
        'slurm_train.sh. With pytorch on several machines that share their '
        'files, set NNODES, NODE_RANK, MASTER_ADDR and PORT as for '
        'dist_train.sh, call this on the first machine, and on the others '
        'pipe the output of --dry-run to bash')
    parser.add_argument(
        '--gpus',
        type=int,
        metavar='N',
        help='GPUs of each run, on each machine with pytorch, in total with '
        'slurm (default: 1)')
    parser.add_argument('--partition', help='of slurm')
    args = parser.parse_args()
    args.run = run_plan
    for name in ('jobs', 'gpus'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'argument --{name}: expected 1 or more, got '
                         f'{value}')
    if args.gpus is not None and args.launcher == 'none':
        parser.error('argument --gpus: needs --launcher pytorch or slurm')
    if (args.partition is not None) != (args.launcher == 'slurm'):
        parser.error('--launcher slurm and --partition need each other')
    return args


def run_plan(args: argparse.Namespace, console: Console) -> None:
    """Train, and test, what is not finished."""
    plan = read_plan(args.plan)
    launcher = Launcher(args.launcher, args.gpus or 1, args.partition)
    check_machines(launcher, args)
    refuse_changed(plan)
    if args.dry_run:
        for command in commands(plan, launcher):
            print(command.line)
        return
    if not launcher.is_first:
        fail(f'NODE_RANK={os.environ["NODE_RANK"]}: only the first machine '
             'runs a plan; here, pipe the output of --dry-run to bash')
    left = plan.left
    for run in plan.all_runs:
        if run not in left:
            console.print(
                f'Reused   {short(run.work_dir)}',
                soft_wrap=True,
                markup=False)
    if not left:
        return
    crew = Crew(left, console, launcher, slots(launcher, args.jobs, left))
    crew.work()
    if crew.failed:
        fail(f'{len(crew.failed)} of {len(left)} runs failed: '
             f'{"; ".join(run.title for run in crew.failed)}')


def check_machines(launcher: Launcher, args: argparse.Namespace) -> None:
    """Refuse several machines that could not meet."""
    if launcher.machines == 1:
        return
    missing = [
        key for key in ('NODE_RANK', 'MASTER_ADDR', 'PORT')
        if key not in os.environ
    ]
    if missing:
        fail(f'NNODES={launcher.machines} needs {" and ".join(missing)} too, '
             'as tools/dist_train.sh does')
    if args.jobs not in (None, 1):
        fail(f'--jobs {args.jobs}: expected 1 with NNODES='
             f'{launcher.machines}, whose machines meet at one port')


def refuse_changed(plan: Plan) -> None:
    """Leave if a folder holds a training with other settings."""
    changed = {
        run: how
        for run in plan.all_runs if (how := run.changed) is not None
    }
    for run, how in changed.items():
        others = f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''
        fail(f'{short(run.work_dir)} was trained {how}{others}: give the run '
             'another name, or remove the folder')


def commands(plan: Plan, launcher: Launcher) -> Iterator[Command]:
    """What is left to do, in an order in which it can be done."""
    for run in plan.left:
        if not run.finished:
            yield launcher.train(run)
        # The first machine tests alone.
        if run.tests and not run.done and launcher.is_first:
            yield launcher.test(run)


def report(args: argparse.Namespace, console: Console) -> None:
    """Compare what is finished, and say what is missing."""
    plan = read_plan(args.plan)
    finished = {
        name: [run for run in seeds if run.trained]
        for name, seeds in plan.runs.items()
    }
    missing = [(run, state_of(run)) for run in plan.all_runs
               if not (run.trained and run.tested)]
    found = [run.work_dir for runs in finished.values() for run in runs]
    if not found:
        fail(f'no run of the plan {plan.name} is finished')
    read = analysis.read_runs(found)
    metric = analysis.common_metric(read)
    experiments = {
        name: analysis.Experiment(
            {run.seed: one
             for run, one in zip(runs, read[name])}, len(plan.runs[name]), {
                 run.seed: metrics[metric]
                 for run in runs if metric in (metrics := run.test_metrics())
             }, [run.seconds for run in runs], plan.published.get(name))
        for name, runs in finished.items() if runs
    }
    rows = analysis.experiment_rows(
        experiments, metric, {
            name: [other for other in plan.compare if other != name]
            for name in experiments if name not in plan.teachers
        })
    readable = analysis.readable_experiments(rows)
    notes = explain(plan, metric, missing)
    out = args.out or Path('work_dirs', plan.name, 'report')
    methods = {name: read[name] for name in experiments}
    files: dict[str, str | bytes] = {
        'report.md':
        f'# {plan.name}\n\n{analysis.markdown_table(readable)}\n' +
        ''.join(f'{note}\n' for note in notes),
        'experiments.csv':
        analysis.csv_table(rows),
        'runs.csv':
        analysis.csv_table(run_rows(finished, methods, metric)),
        'experiments.png':
        analysis.draw_experiments(experiments, metric),
        'curves.png':
        analysis.draw_runs(methods, metric),
    }
    write(out, files)
    show(f'{plan.name}: {metric}', readable, console)
    for note in filter(None, notes):
        console.print(note, soft_wrap=True, markup=False)
    console.print(
        f'Written: {out}/report.md, experiments.csv, runs.csv, '
        'experiments.png, curves.png',
        soft_wrap=True)


def explain(plan: Plan, metric: str,
            missing: Sequence[tuple[Run, str]]) -> list[str]:
    """What the table shows, and what it lacks; a line each."""
    notes = [
        f'{metric}: mean ± sample standard deviation over the seeds. The '
        'best epoch of each run is chosen on the validation that it is '
        'reported on; the last, and the test, are not chosen. Differences '
        'are paired by seed, p is of a two-sided paired t test, not '
        'corrected for several comparisons.'
    ]
    if plan.published:
        notes.append('Figures with a star (*) are published by others and '
                     'were not run again by us.')
    if missing:
        notes += ['', 'Missing:', '']
        notes += [f'- {run.title}: {state}' for run, state in missing]
    return notes


def state_of(run: Run) -> str:
    """Why a run is not in the report, or not all of it."""
    if (how := run.changed) is not None:
        return f'was trained {how}'
    if run.trained:
        return 'not tested'
    done = epochs_of(run)
    return (f'{done} of {run.epochs} epochs' if done else 'not started')


def run_rows(finished: dict[str, list[Run]],
             methods: dict[str, list[analysis.TrainingRun]],
             metric: str) -> list[dict[str, Any]]:
    """Each run's figures, with the test's and its duration."""
    runs = [run for name in methods for run in finished[name]]
    return [{
        **row, 'test': run.test_metrics().get(metric, ''),
        'seconds': run.seconds
    } for row, run in zip(analysis.run_rows(methods, metric), runs)]


def main() -> None:
    """Run or report."""
    args = parse_args()
    compat.quiet()
    MMLogger.get_current_instance().setLevel('ERROR')
    try:
        with one_line_errors():
            args.run(args, Console(file=sys.stdout))
            sys.stdout.flush()
    except BrokenPipeError:
        # As `head` does, the reader has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PlanError, analysis.AnalysisError) as error:
        fail(error)
    except KeyboardInterrupt:
        print(
            'experiments.py: interrupted; the same command goes on from the '
            'last finished epochs',
            file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
