"""What quickstart.py does once its environment is there."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from environment import ROOT
from mmengine.config import Config
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from wsld_plugin import __version__, compat
from wsld_plugin.checkpoints import export_student
from wsld_plugin.datasets import DigitsDataset

CONFIGS = ROOT / 'configs'
# Trainings of students that run side by side: small networks leave cores of
# one process idle.
SIDE_BY_SIDE = 2
MOST_THREADS = 8


@dataclass(frozen=True, eq=False)
class Training:
    """One run of tools/train.py, told apart by its folder.

    Attributes:
        config: Name of a file in configs/, without suffix.
        work_dir: Folder for checkpoints and logs, the run's own.
        seed: Seed of the run.
        options: Further overrides of the config, by dotted key.
        teacher: Checkpoint that the run distils from.
    """

    config: str
    work_dir: Path
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: Path | None = None

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return int(self._cfg.train_cfg.max_epochs)

    @property
    def scans(self) -> int:
        """Number of pictures that the network learns from."""
        return self._cfg.train_dataloader.dataset.get(
            'indices') or _size('train')

    @property
    def checkpoint(self) -> Path:
        """The last epoch's checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def log(self) -> Path:
        """Everything that the training prints."""
        return self.work_dir / 'train.log'

    @property
    def finished(self) -> bool:
        """Whether this training, and no other, is complete in its folder."""
        mark = self._mark
        return (mark.get('training') == self._digest
                and mark.get('finished', False) and self.checkpoint.exists())

    def start(self, threads: int) -> subprocess.Popen:
        """Start, or go on after the last epoch of an interrupted run."""
        if self._mark.get('training') != self._digest:
            self._discard()
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self._write_mark(finished=False)
        overrides = {'randomness.seed': self.seed, **self.options}
        if self.teacher is not None:
            overrides['model.teacher_ckpt'] = self.teacher
        with self.log.open('a') as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / 'tools' / 'train.py'),
                    str(self._config_file), '--work-dir',
                    str(self.work_dir), '--resume', '--cfg-options',
                    *(f'{key}={value}' for key, value in overrides.items())
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    **os.environ,
                    'OMP_NUM_THREADS': str(threads),
                    'MKL_NUM_THREADS': str(threads),
                    # Threads that spin while they wait slow a busy machine
                    # down several times.
                    'OMP_WAIT_POLICY': 'PASSIVE',
                })

    def finish(self) -> None:
        """Note that the run is complete; keep its last checkpoint only."""
        for path in self.work_dir.glob('epoch_*.pth'):
            if path != self.checkpoint:
                path.unlink()
        self._write_mark(finished=True)

    def records(self) -> list[dict[str, Any]]:
        """What mmengine logged, interrupted attempts included, in order."""
        records = []
        for path in sorted(self.work_dir.glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines(keepends=True):
                # The last line may be still being written.
                if line.endswith('\n'):
                    records.append(json.loads(line))
        return records

    def epochs_done(self) -> int:
        """Number of epochs that were logged."""
        return max(self.cross_entropies(), default=0)

    def accuracies(self) -> dict[int, float]:
        """Accuracy on the val split in percent, by epoch."""
        return {
            record['step']: record['accuracy/top1']
            for record in self.records() if 'accuracy/top1' in record
        }

    def cross_entropies(self) -> dict[int, float]:
        """Loss on the labels alone at the end of an epoch in nats."""
        return {
            # The distilled student's own loss has a prefix.
            record['epoch']: record.get('student.loss', record['loss'])
            for record in self.records() if 'epoch' in record
        }

    @property
    def _config_file(self) -> Path:
        return CONFIGS / f'{self.config}.py'

    @cached_property
    def _cfg(self) -> Config:
        cfg = Config.fromfile(self._config_file)
        cfg.merge_from_dict({'randomness.seed': self.seed, **self.options})
        return cfg

    @cached_property
    def _digest(self) -> str:
        """Identifies everything that the result depends on."""
        digest = hashlib.sha256(
            f'{__version__}\n{self._cfg.pretty_text}'.encode())
        if self.teacher is not None:
            digest.update(self.teacher.read_bytes())
        return digest.hexdigest()

    @property
    def _mark_file(self) -> Path:
        return self.work_dir / 'quickstart.json'

    @property
    def _mark(self) -> dict[str, Any]:
        try:
            return json.loads(self._mark_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _write_mark(self, *, finished: bool) -> None:
        part = self._mark_file.with_suffix('.part')
        part.write_text(
            json.dumps({
                'training': self._digest,
                'finished': finished
            }))
        part.replace(self._mark_file)

    def _discard(self) -> None:
        """Remove what another training left and this one might mistake."""
        for pattern in ('epoch_*.pth', 'last_checkpoint', 'train.log'):
            for path in self.work_dir.glob(pattern):
                path.unlink()
        for path in self.work_dir.glob('*/vis_data'):
            shutil.rmtree(path.parent)


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
            'ce_r34_digits',
            work_dirs / 'ce_r34_digits',
            options=options)
        _train([teacher], console, side_by_side=1)
        plain, distilled = ([
            Training(
                config,
                work_dirs / f'{config}_seed{seed}',
                seed,
                options,
                teacher=teacher.checkpoint if distils else None)
            for seed in range(seeds)
        ] for config, distils in (('ce_r18_digits', False),
                                  ('wsld_r34_r18_digits', True)))
        _train([run for pair in zip(plain, distilled) for run in pair],
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
                    _scores('ce_r18_digits', student, test)
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
    labels = _labels(test)
    table = Table(
        title=f'Handwritten digits, accuracy in % ({seeds} '
        f'{"seed" if seeds == 1 else "seeds"})')
    for heading in ('network', 'learns from', f'val ({_size("val")})',
                    f'test ({len(test)})'):
        table.add_column(heading)
    for network, targets, trainings, key in (
        ('ResNet-34, the teacher', f'{teacher.scans} scans', [teacher],
         'teacher'),
        ('ResNet-18', f'{plain[0].scans} scans', plain, 'plain'),
        ('ResNet-18, WSLD', f'{distilled[0].scans} scans and the teacher',
         distilled, 'distilled'),
    ):
        table.add_row(
            network, targets,
            _mean([
                training.accuracies()[training.epochs]
                for training in trainings
            ]),
            _mean([
                100 * float((score.argmax(1) == labels).mean())
                for score in scores[key]
            ]))
    console.print(table)
    for what, path in (('student', students[0]), ('curves', 'curves.png'),
                       ('predictions', 'predictions.png')):
        console.print(f'{what + ":":12} {_short(out / path)}', soft_wrap=True)
    console.print(f'Done in {_duration(time.monotonic() - began)}.')


def _train(trainings: Sequence[Training], console: Console,
           side_by_side: int) -> None:
    """Run the trainings that are not finished, a few at a time."""
    for training in trainings:
        if training.finished:
            console.print(
                f'Reused   {_short(training.work_dir)}', soft_wrap=True)
    waiting = [
        training for training in trainings if not training.finished
    ]
    side_by_side = min(side_by_side, len(waiting))
    threads = max(1, min(MOST_THREADS, _cores() // max(1, side_by_side)))
    running: dict[Training, tuple[subprocess.Popen, Any, float]] = {}
    progress = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('epochs, val {task.fields[accuracy]}%'),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal)
    try:
        with progress:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    training = waiting.pop(0)
                    if not console.is_terminal:
                        console.print(
                            f'Training {_short(training.work_dir)}',
                            soft_wrap=True)
                    task = progress.add_task(
                        f'Training {_short(training.work_dir)}',
                        total=training.epochs,
                        accuracy='-')
                    running[training] = (training.start(threads), task,
                                         time.monotonic())
                time.sleep(0.2)
                for training, (process, task, began) in list(running.items()):
                    progress.update(
                        task,
                        completed=training.epochs_done(),
                        accuracy=_last_accuracy(training))
                    code = process.poll()
                    if code is None:
                        continue
                    del running[training]
                    if code != 0:
                        _fail(training, code)
                    training.finish()
                    progress.remove_task(task)
                    progress.console.print(
                        f'Trained  {_short(training.work_dir)}: val '
                        f'{_last_accuracy(training)}% after '
                        f'{training.epochs} epochs, '
                        f'{_duration(time.monotonic() - began)}',
                        soft_wrap=True)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.wait()


def _last_accuracy(training: Training) -> str:
    accuracies = training.accuracies()
    return f'{accuracies[max(accuracies)]:.1f}' if accuracies else '-'


def _fail(training: Training, code: int) -> NoReturn:
    lines = training.log.read_text(errors='replace').split('\n')
    last = next((line for line in reversed(lines) if line.strip()), '')
    sys.exit(f'quickstart.py: {_short(training.work_dir)} ended with exit '
             f'code {code} ({last.strip()}), see {_short(training.log)}')


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


def _scores(config: str, checkpoint: Path,
            digits: DigitsDataset) -> np.ndarray:
    """Class probabilities by mmpretrain's inferencer, shape (N, 10)."""
    from mmpretrain import ImageClassificationInferencer
    inferencer = ImageClassificationInferencer(
        str(CONFIGS / f'{config}.py'), pretrained=str(checkpoint))
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
        teacher.accuracies()[teacher.epochs],
        color='0.4',
        linestyle='--',
        label='ResNet-34, the teacher')
    for label, color, trainings in (('ResNet-18, labels', 'C0', plain),
                                    ('ResNet-18, WSLD', 'C1', distilled)):
        for axes, curves in ((left, [t.accuracies() for t in trainings]),
                             (right, [t.cross_entropies()
                                      for t in trainings])):
            epochs = sorted(curves[0])
            heights = np.array([[curve[epoch] for epoch in epochs]
                                for curve in curves])
            axes.plot(epochs, heights.T, color=color, alpha=0.3, linewidth=1)
            axes.plot(epochs, heights.mean(0), color=color, label=label)
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


def _mean(values: Sequence[float]) -> str:
    mean = f'{statistics.mean(values):.1f}'
    if len(values) > 1:
        mean += f' ± {statistics.stdev(values):.1f}'
    return mean


def _size(split: str) -> int:
    return len(DigitsDataset(split))


def _short(path: Path) -> str:
    """Path as seen from the repository, where it is inside."""
    return str(path.relative_to(ROOT) if ROOT in path.parents else path)


def _duration(seconds: float) -> str:
    return f'{seconds // 60:.0f} min {seconds % 60:.0f} s'


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
