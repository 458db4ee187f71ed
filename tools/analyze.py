"""Analyze distillation after the fact: samples, bias and variance, runs."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from command_line import add_config_options, fail, one_line_errors
from mmengine.config import Config
from mmengine.logging import MMLogger
from results import show, write
from rich.console import Console
from rich.progress import track
from trainings import SIDE_BY_SIDE, Training, TrainingError, train

from wsld_plugin import analysis, compat
from wsld_plugin.checkpoints import read_checkpoint, write_atomically

# Pictures in a grid of the least or most weight.
PICTURES = 12
# Epochs at which bias and variance are measured, unless asked otherwise.
POINTS = 6

Rows = Sequence[dict[str, Any]]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser(
        'regularization',
        help='weights and regularization samples of a split',
        description='Count the regularization samples of a split, and show '
        'the samples with the least and the most weight.')
    command.add_argument('config', help='config of a distillation')
    command.add_argument(
        'checkpoints',
        nargs='+',
        help='checkpoints of its student, such as of several epochs')
    command.add_argument(
        '--split',
        choices=analysis.SPLITS,
        default='val',
        help='what to look at (default: val); all go through the pipeline of '
        'val')
    command.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='folder for the results (default: '
        'work_dirs/CONFIG/regularization_SPLIT)')
    add_config_options(command)
    command.set_defaults(run=regularization)

    command = commands.add_parser(
        'bias-variance',
        help='error of several runs, decomposed',
        description='Train each config several times, each time on other '
        'samples, and decompose the error of the students. The same command '
        'again goes on where it was stopped, and repeats no finished run.')
    command.add_argument(
        'configs',
        nargs='+',
        help='configs with one training set; where one of them has no '
        'teacher, the others are compared with it')
    command.add_argument(
        '--runs',
        type=int,
        default=5,
        metavar='R',
        help='trainings of each config, at least 2 (default: 5)')
    command.add_argument(
        '--splits',
        choices=['disjoint', 'bootstrap'],
        default='disjoint',
        help='what a run learns from: a part of the training set that no '
        'other run has, or as many samples drawn with replacement (default: '
        'disjoint)')
    command.add_argument(
        '--split',
        choices=['val', 'test'],
        default='test',
        help='whose error is decomposed (default: test)')
    command.add_argument(
        '--interval',
        type=int,
        metavar='EPOCHS',
        help='epochs between two decompositions (default: a '
        f'{POINTS}th of the training)')
    command.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs', 'bias_variance'),
        metavar='DIR',
        help='folder for runs and results (default: work_dirs/bias_variance)')
    add_config_options(command)
    command.set_defaults(run=bias_variance)

    command = commands.add_parser(
        'runs',
        help='finished trainings, compared',
        description='Compare trainings by what they logged. Folders whose '
        'names differ in _seedN or _runN at their end are one method.')
    command.add_argument(
        'work_dirs', nargs='+', type=Path, help='work dirs of trainings')
    command.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs', 'runs'),
        metavar='DIR',
        help='folder for the results (default: work_dirs/runs)')
    command.set_defaults(run=runs)

    args = parser.parse_args()
    for name, least in (('runs', 2), ('interval', 1)):
        value = getattr(args, name, None)
        if value is not None and value < least:
            parser.error(f'argument --{name}: expected {least} or more, got '
                         f'{value}')
    return args


def regularization(args: argparse.Namespace, console: Console) -> None:
    """Look at the samples of a split, and write what was seen."""
    cfg = read(args.config, args.cfg_options)
    settings = analysis.loss_settings(cfg)
    checkpoints = {
        path: read_checkpoint(path)
        for path in dict.fromkeys(args.checkpoints)
    }
    names = checkpoint_names(checkpoints)
    networks = [
        analysis.student_network(cfg, checkpoint, path)
        for path, checkpoint in checkpoints.items()
    ]
    path, checkpoint = next(iter(checkpoints.items()))
    networks.append(analysis.teacher_network(cfg, checkpoint, path))
    del checkpoints, checkpoint

    loader = analysis.evaluation_loader(cfg, args.split)
    parts: list[list[analysis.Samples]] = [[] for _ in names]
    first = 0
    for (*students, teacher), labels in analysis.logits(
            networks, progress(loader, f'The split {args.split}', console)):
        for part, student in zip(parts, students):
            part.append(
                analysis.inspect_batch(student, teacher, labels, first,
                                       settings))
        first += len(labels)
    samples = {
        name: analysis.join(part)
        for name, part in zip(names, parts)
    }
    if not len(samples[names[0]].label):
        fail(f'the split {args.split} has no sample that counts')

    dataset: Any = loader.dataset
    classes = dataset.metainfo.get('classes') or [
        str(label) for label in range(teacher.shape[1])
    ]
    out = args.out or Path('work_dirs',
                           Path(args.config).stem,
                           f'regularization_{args.split}')
    pictures = {
        'shares.png': analysis.draw_shares(samples, classes),
        'weights.png': analysis.draw_weights(samples)
    }
    last = samples[names[-1]]
    to_rgb = getattr(networks[0].data_preprocessor, 'to_rgb', False)
    for most, name in ((False, 'least_weight.png'), (True,
                                                     'most_weight.png')):
        chosen = analysis.striking_samples(last, PICTURES, most)
        pictures[name] = analysis.draw_samples(
            last, chosen, [
                analysis.picture(dataset[int(index)]['inputs'], to_rgb)
                for index in last.position[chosen]
            ], classes,
            f'{"Most" if most else "Least"} weight, {args.split}, {names[-1]}')
    per_class = analysis.class_rows(samples, classes)
    totals = analysis.checkpoint_rows(samples)
    write(
        out, {
            'samples.csv':
            analysis.csv_table(analysis.sample_rows(samples, classes)),
            'classes.csv':
            analysis.csv_table(per_class),
            'checkpoints.csv':
            analysis.csv_table(totals),
            **pictures, 'regularization.html':
            regularization_page(
                f'{Path(args.config).stem}, {args.split}', settings, totals, [
                    row for row in per_class if row['checkpoint'] == names[-1]
                ], pictures)
        })
    show(f'Regularization samples, {args.split}', [{
        key: value
        for key, value in row.items()
        if key in ('checkpoint', 'samples', 'regularization', 'share (%)',
                   'mean weight')
    } for row in totals], console)
    console.print(f'Written: {out}/regularization.html', soft_wrap=True)


def regularization_page(title: str, settings: analysis.LossSettings,
                        totals: Rows, per_class: Rows,
                        pictures: dict[str, bytes]) -> str:
    """The results as one HTML file."""
    shown = analysis.striking_classes(per_class)
    return analysis.page(
        f'Regularization samples: {title}', [
            analysis.paragraph(
                'A regularization sample is one on which the part of the '
                'soft-label loss that lowers the variance has a larger '
                'derivative by the label\'s logit than the part that lowers '
                f'the bias, here at temperature {settings.tau:g}. The weight '
                'is 1 - exp(-CE of the student / CE of the teacher): 0.632 '
                'where both are equally good, less where the student is '
                'better. Cross-entropies (CE) are at temperature 1, in nats.'),
            analysis.heading('By checkpoint'),
            analysis.table(totals),
            analysis.image(pictures['shares.png'],
                           'Share of regularization samples'),
            analysis.heading('Weights'),
            analysis.image(pictures['weights.png'], 'Histogram of weights'),
            analysis.heading('By class' if len(shown) == len(per_class) else
                             'Classes with the highest and lowest share'),
            analysis.table(shown),
            analysis.heading('Samples with the least weight'),
            analysis.image(pictures['least_weight.png'],
                           'Samples with the least weight'),
            analysis.heading('Samples with the most weight'),
            analysis.image(pictures['most_weight.png'],
                           'Samples with the most weight'),
        ])


def checkpoint_names(checkpoints: dict[str, dict[str, Any]]) -> list[str]:
    """What to call each checkpoint: its epoch, its file, or its path."""
    choices = [
        [
            f'epoch {checkpoint.get("meta", {}).get("epoch")}'
            for checkpoint in checkpoints.values()
        ],
        [Path(path).stem for path in checkpoints],
    ]
    for names in choices:
        if len(set(names)) == len(names) and 'epoch None' not in names:
            return names
    return list(checkpoints)


def bias_variance(args: argparse.Namespace, console: Console) -> None:
    """Train what is not trained yet, and decompose the errors."""
    configs = {
        Path(path).stem: read(path, args.cfg_options)
        for path in args.configs
    }
    if len(configs) < len(args.configs):
        fail('the configs must have different names')
    for name, cfg in configs.items():
        # The pipeline is that of val.
        for split in ('val', args.split):
            if not cfg.get(f'{split}_dataloader'):
                fail(f'{name} has no {split}_dataloader')
    compare_training_sets(configs)
    epochs = {
        name: measured_epochs(name, cfg, args.interval)
        for name, cfg in configs.items()
    }
    trainings = {
        name: [
            prepare(args, name, cfg, epochs[name][0], run)
            for run in range(args.runs)
        ]
        for name, cfg in configs.items()
    }

    def predict(training: Training) -> None:
        name = training.work_dir.parent.name
        for split in ('val', 'test'):
            if not configs[name].get(f'{split}_dataloader'):
                continue
            loader = analysis.evaluation_loader(configs[name], split)
            for epoch in epochs[name]:
                path = str(training.work_dir / f'epoch_{epoch}.pth')
                analysis.keep_predictions(
                    analysis.student_network(configs[name],
                                             read_checkpoint(path), path),
                    loader, predictions(training, split, epoch),
                    training.work_dir / f'{split}_labels.npy')

    # Each split of the data for all configs, before the next one.
    train([run for group in zip(*trainings.values()) for run in group],
          console, SIDE_BY_SIDE, predict)

    direct = [
        name for name, cfg in configs.items() if 'teacher' not in cfg.model
    ]
    decompositions = {}
    pairs = [(name, epoch) for name in configs for epoch in epochs[name]]
    for name, epoch in progress(pairs, 'Decomposing', console):
        reference = None
        if len(direct) == 1 and epoch in epochs[direct[0]]:
            reference = [
                predictions(run, args.split, epoch)
                for run in trainings[direct[0]]
            ] if name != direct[0] else None
        decompositions[name, epoch] = analysis.decompose(
            [predictions(run, args.split, epoch) for run in trainings[name]],
            trainings[name][0].work_dir / f'{args.split}_labels.npy',
            reference)
    rows = analysis.decomposition_rows(decompositions, args.runs)
    readable = analysis.readable_rows(rows)
    name = f'bias_variance_{args.split}'
    write(
        args.out, {
            f'{name}.csv': analysis.csv_table(rows),
            f'{name}.md': analysis.markdown_table(readable),
            f'{name}.png': analysis.draw_decomposition(rows)
        })
    show(
        f'{args.split}, {args.runs} {args.splits} runs, in nats ± standard '
        'error', [
            row for row, (config, epoch) in zip(readable, pairs)
            if epoch == epochs[config][-1]
        ], console)
    console.print(f'Written: {args.out}/{name}.png, .md, .csv', soft_wrap=True)


def compare_training_sets(configs: dict[str, Config]) -> None:
    """Refuse configs whose training sets differ, but for the pipeline."""
    sets = {}
    for name, cfg in configs.items():
        if not cfg.get('train_dataloader'):
            fail(f'{name} has no train_dataloader')
        sets[name] = dict(cfg.train_dataloader.dataset, pipeline=None)
    first, *others = sets
    for name in others:
        if sets[name] != sets[first]:
            fail(f'{name} has another training set than {first}: their '
                 'train_dataloader.dataset must be the same')


def measured_epochs(name: str, cfg: Config,
                    interval: int | None) -> list[int]:
    """Epochs of a training whose predictions are kept; the last is one."""
    last = (cfg.get('train_cfg') or {}).get('max_epochs')
    if not last:
        fail(f'{name} has no train_cfg.max_epochs')
    if not (cfg.get('default_hooks') or {}).get('checkpoint'):
        fail(f'{name} has no default_hooks.checkpoint')
    step = interval or -(-last // POINTS)
    return [*range(min(step, last), last, step), last]


def prepare(args: argparse.Namespace, name: str, cfg: Config, interval: int,
            run: int) -> Training:
    """One training of a config, on its own part of the data."""
    cfg = deepcopy(cfg)
    cfg.train_dataloader.dataset = dict(
        type='ResampledDataset',
        dataset=cfg.train_dataloader.dataset,
        run=run,
        parts=args.runs if args.splits == 'disjoint' else None)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=run)
    cfg.default_hooks.checkpoint.update(
        interval=interval, max_keep_ckpts=-1, save_best=None, save_last=True)
    folder = args.out / name / f'run{run}'
    text = cfg.pretty_text.encode()
    config = folder.with_suffix('.py')
    teacher = cfg.model.get('teacher_ckpt')
    if teacher is not None and '://' in str(teacher):
        teacher = None
    elif teacher is not None and not Path(teacher).is_file():
        fail(f'{name}: there is no model.teacher_ckpt={teacher}')
    if not config.exists():
        write_atomically(config, text)
    training = Training(
        config,
        folder,
        seed=run,
        teacher=None if teacher is None else Path(teacher))
    if config.read_bytes() != text or training.occupied:
        fail(f'{folder} is for a training with other settings: choose '
             'another --out')
    return training


def predictions(training: Training, split: str, epoch: int) -> Path:
    """Where the predictions of a training are kept."""
    return training.work_dir / f'{split}_epoch_{epoch}.npy'


def runs(args: argparse.Namespace, console: Console) -> None:
    """Compare work dirs."""
    methods = analysis.read_runs(args.work_dirs)
    metric = analysis.common_metric(methods)
    rows = analysis.compare_runs(methods, metric)
    write(
        args.out, {
            'runs.csv': analysis.csv_table(analysis.run_rows(methods, metric)),
            'methods.csv': analysis.csv_table(rows),
            'runs.md': analysis.markdown_table(analysis.readable_runs(rows)),
            'runs.png': analysis.draw_runs(methods, metric)
        })
    show(f'{metric} of the validation', analysis.readable_runs(rows), console)
    for group in methods.values():
        for run in group:
            if run.unfinished:
                console.print(f'Unfinished: {run.path}', soft_wrap=True)
    console.print(f'Written: {args.out}/runs.png, .md, .csv', soft_wrap=True)


def read(path: str, options: dict[str, Any]) -> Config:
    """A config with what the command line overrides.

    Raises:
        SystemExit: With one line, if the file is missing or is no config.
    """
    try:
        cfg = Config.fromfile(path)
    except (OSError, SyntaxError) as error:
        fail(f'cannot read the config {path}: {error}')
    cfg.merge_from_dict(options)
    if 'model' not in cfg:
        fail(f'{path} has no model')
    return cfg


def progress(items: Any, what: str, console: Console) -> Any:
    """Pass items on, with a bar if the output is a terminal."""
    return track(
        items,
        what,
        console=console,
        transient=True,
        disable=not console.is_terminal)


def main() -> None:
    """Analyze."""
    args = parse_args()
    compat.quiet()
    # What is loaded from where is told by the results.
    MMLogger.get_current_instance().setLevel('ERROR')
    try:
        with one_line_errors():
            args.run(args, Console(file=sys.stdout))
    except (TrainingError, analysis.AnalysisError) as error:
        fail(error)
    except KeyboardInterrupt:
        print(
            'analyze.py: interrupted; the same command begins with what is '
            'not finished',
            file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
