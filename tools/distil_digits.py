"""What quickstart.py does once its environment is there."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT
from rich.console import Console
from rich.table import Table
from trainings import (
    SIDE_BY_SIDE,
    Training,
    TrainingError,
    duration,
    short,
    train,
)

from wsld_plugin import compat
from wsld_plugin.analysis import mean_and_deviation, plot_runs
from wsld_plugin.checkpoints import export_student
from wsld_plugin.datasets import DigitsDataset

CONFIGS = ROOT / 'configs'


def run(work_dirs: Path,
        seeds: int,
        options: Mapping[str, Any] | None = None,
        console: Console | None = None) -> None:
    """Train, export, predict, draw and print.

    Args:
        work_dirs: Folder for everything that is written.
        seeds: Number of trainings of each student.
        options: Overrides of all configs, by dotted key.
        console: Where to print; by default the terminal.

    Raises:
        SystemExit: With one line, if a training fails (code 1) or on Ctrl-C
            (code 130).
    """
    compat.quiet()
    began = time.monotonic()
    work_dirs = work_dirs.resolve()
    options = options or {}
    out = work_dirs / 'quickstart'
    out.mkdir(parents=True, exist_ok=True)
    console = console or Console(file=sys.stdout)
    try:
        teacher = Training(
            CONFIGS / 'ce_r34_digits.py',
            work_dirs / 'ce_r34_digits',
            options=options)
        train([teacher], console, side_by_side=1)
        plain, distilled = ([
            Training(
                CONFIGS / f'{config}.py',
                work_dirs / f'{config}_seed{seed}',
                seed,
                options,
                teacher=teacher.checkpoint if distils else None)
            for seed in range(seeds)
        ] for config, distils in (('ce_r18_digits', False),
                                  ('wsld_r34_r18_digits', True)))
        train([run for pair in zip(plain, distilled) for run in pair],
               console, SIDE_BY_SIDE)
        with console.status('Exporting, predicting, drawing'), _captured(
                out / 'quickstart.log'):
            students = [_export(training, out) for training in distilled]
            test = DigitsDataset('test')
            scores = {
                'teacher': [_scores(teacher.config, teacher.checkpoint, test)],
                'plain': [
                    _scores(training.config, training.checkpoint, test)
                    for training in plain
                ],
                'distilled': [
                    _scores(plain[0].config, student, test)
                    for student in students
                ]
            }
            _draw_curves(teacher, plain, distilled, out / 'curves.png')
            _draw_predictions(scores['distilled'][0], test,
                              out / 'predictions.png')
    except KeyboardInterrupt:
        print(
            'quickstart.py: interrupted; the same command goes on from the '
            'last finished epoch',
            file=sys.stderr)
        sys.exit(130)
    except TrainingError as error:
        sys.exit(f'quickstart.py: {error}')
    labels = _labels(test)
    table = Table(
        title=f'Handwritten digits, accuracy in % ({seeds} '
        f'{"seed" if seeds == 1 else "seeds"})')
    for heading in ('network', 'learns from', f'val ({_size("val")})',
                    f'test ({len(test)})'):
        table.add_column(heading)
    for network, targets, trainings, key in (
        ('ResNet-34, the teacher', f'{_scans(teacher)} scans', [teacher],
         'teacher'),
        ('ResNet-18', f'{_scans(plain[0])} scans', plain, 'plain'),
        ('ResNet-18, WSLD', f'{_scans(distilled[0])} scans and the teacher',
         distilled, 'distilled'),
    ):
        table.add_row(
            network, targets,
            mean_and_deviation([
                _accuracies(training)[training.epochs]
                for training in trainings
            ]),
            mean_and_deviation([
                100 * float((score.argmax(1) == labels).mean())
                for score in scores[key]
            ]))
    console.print(table)
    for what, path in (('student', students[0]), ('curves', 'curves.png'),
                       ('predictions', 'predictions.png')):
        console.print(f'{what + ":":12} {short(out / path)}', soft_wrap=True)
    console.print(f'Done in {duration(time.monotonic() - began)}.')


@contextlib.contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Send to a file what other packages print."""
    with log.open('w') as stream, contextlib.redirect_stdout(
            stream), contextlib.redirect_stderr(stream):
        yield


def _export(training: Training, out: Path) -> Path:
    """The distilled student as a file of its own, reused if up to date."""
    name = training.work_dir.name
    for path in out.glob(f'{name}_*.pth'):
        if path.stat().st_mtime >= training.checkpoint.stat().st_mtime:
            return path
        path.unlink()
    return export_student(str(training.checkpoint), str(out / name)).path


def _scores(config: Path, checkpoint: Path,
            digits: DigitsDataset) -> np.ndarray:
    """Class probabilities by mmpretrain's inferencer, shape (N, 10)."""
    from mmpretrain import ImageClassificationInferencer
    inferencer = ImageClassificationInferencer(
        str(config), pretrained=str(checkpoint))
    results = inferencer([digits[i]['img'] for i in range(len(digits))],
                         batch_size=128)
    return np.stack([result['pred_scores'] for result in results])


def _labels(digits: DigitsDataset) -> np.ndarray:
    return np.array([digits[i]['gt_label'] for i in range(len(digits))])


def _draw_curves(teacher: Training, plain: Sequence[Training],
                 distilled: Sequence[Training], path: Path) -> None:
    """Accuracy on val and loss on the labels; seeds thin, mean thick."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.axhline(
        _accuracies(teacher)[teacher.epochs],
        color='0.4',
        linestyle='--',
        label='ResNet-34, the teacher')
    for label, color, trainings in (('ResNet-18, labels', 'C0', plain),
                                    ('ResNet-18, WSLD', 'C1', distilled)):
        plot_runs(left, [_accuracies(run) for run in trainings], color, label)
        plot_runs(right,
                  [run.history().cross_entropies() for run in trainings],
                  color, label)
    left.set(xlabel='epoch', ylabel='accuracy on val (%)')
    right.set(
        xlabel='epoch',
        ylabel='cross-entropy with the labels\non train (nats)',
        yscale='log')
    left.legend(loc='lower right')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _draw_predictions(scores: np.ndarray, digits: DigitsDataset,
                      path: Path) -> None:
    """Some test digits with what the student says: its errors, then others."""
    from matplotlib.figure import Figure
    labels, guesses = _labels(digits), scores.argmax(1)
    wrong = guesses != labels
    shown = np.argsort(~wrong, kind='stable')[:40]
    figure = Figure(figsize=(10, 6.2), layout='constrained')
    figure.suptitle(f'ResNet-18 distilled with WSLD: {wrong.sum()} of '
                    f'{len(labels)} test digits wrong, in red')
    for axes, index in zip(figure.subplots(4, 10).flat, shown):
        axes.imshow(digits[int(index)]['img'], interpolation='nearest')
        axes.set_axis_off()
        text = f'{guesses[index]}  {100 * scores[index].max():.0f}%'
        if wrong[index]:
            text += f'\nis {labels[index]}'
        axes.set_title(
            text, fontsize=9, color='C3' if wrong[index] else 'black')
    figure.savefig(path, dpi=120)


def _accuracies(training: Training) -> dict[int, float]:
    """Accuracy on the val split in percent, by epoch."""
    return training.history().validation('accuracy/top1')


def _scans(training: Training) -> int:
    """Number of pictures that the network learns from."""
    return training.cfg.train_dataloader.dataset.get(
        'indices') or _size('train')


def _size(split: str) -> int:
    return len(DigitsDataset(split))
