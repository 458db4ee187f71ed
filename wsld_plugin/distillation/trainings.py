"""Run trainings one after the other: resumed if cut, never repeated."""
from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .. import compat
from ..checkpoints import write_atomically
from ..version import __version__


class TrainingError(ValueError):
    """A training cannot begin or go on; one line says why."""


@dataclass(frozen=True)
class Training:
    """A training by epochs, told apart by its folder.

    Attributes:
        cfg: All of its settings. Its checkpoint hook must write
            ``epoch_N.pth`` of the last epoch, in the work dir.
        work_dir: Folder for checkpoints and logs, the training's own.
    """

    cfg: Config
    work_dir: Path

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return int(self.cfg.train_cfg.max_epochs)

    @property
    def checkpoint(self) -> Path:
        """The last epoch's checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'


def run_trainings(trainings: Sequence[Training],
                  finish: Callable[[Training], Any] | None = None) -> None:
    """Run those that are not finished, in this process and in order.

    A training that was cut goes on after its last checkpoint. Its settings,
    which include this package's version and the teacher's file, are kept as
    ``settings.json``, and no training goes on in a folder with others. What
    is printed meanwhile goes to ``train.log``; stdout gets a line for each
    training and, on a terminal, one bar with the time left. Only the last
    checkpoint of a finished training stays. The global random state is
    changed.

    Args:
        trainings: In the order to run.
        finish: Called when a training has ended, while its checkpoints of
            all epochs are there. If the program is killed within, it is
            called again the next time.

    Raises:
        TrainingError: Before anything runs, if a teacher's file is missing
            or a folder holds another training; or when its turn comes, if
            another process is at a training.
    """
    console = Console(file=sys.stdout, soft_wrap=True, markup=False)
    waiting = []
    for training in trainings:
        settings = _settings(training)
        if _finished(training, settings):
            console.print(f'Reused   {training.work_dir}')
        else:
            waiting.append((training, settings))
    with _bar(console) as bar:
        task = bar.add_task('', total=sum(run.epochs for run, _ in waiting))
        for training, settings in waiting:
            bar.update(task, description=f'Training {training.work_dir.name}')
            if not console.is_terminal:
                console.print(f'Training {training.work_dir}')
            began, watch = time.monotonic(), _Watch(bar, task)
            with _locked(training.work_dir):
                _train(training, settings, watch)
                if finish is not None:
                    finish(training)
                for path in training.work_dir.glob('epoch_*.pth'):
                    if path != training.checkpoint:
                        path.unlink()
                write_atomically(training.work_dir / 'finished', b'')
            minutes, seconds = divmod(round(time.monotonic() - began), 60)
            console.print(
                f'Trained  {training.work_dir}: {watch.found}'
                f'{training.epochs} epochs, {minutes} min {seconds} s')


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn('{task.description}', markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('epochs'),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal)


class _Watch(Hook):
    """Moves the bar, and notes the last validation."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self.bar, self.task = bar, task
        self.validated: int | None = None
        self.found = ''

    def before_train(self, runner: Runner) -> None:
        self.bar.advance(self.task, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        self.bar.advance(self.task)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        self.validated = runner.epoch
        if metrics and 'accuracy/top1' in metrics:
            self.found = f'val {metrics["accuracy/top1"]:.1f}%, '


def _train(training: Training, settings: str, watch: _Watch) -> None:
    """Train, or go on after the last checkpoint."""
    work_dir = training.work_dir
    write_atomically(work_dir / 'settings.json', settings.encode())
    cfg = deepcopy(training.cfg)
    cfg.work_dir = str(work_dir)
    # mmengine shares loggers and more between runs of one name and second.
    place = hashlib.sha256(str(work_dir.resolve()).encode()).hexdigest()[:8]
    cfg.experiment_name = f'{work_dir.name}_{place}'
    last = work_dir / 'last_checkpoint'
    # The folder may have moved since.
    latest = work_dir / Path(last.read_text() if last.exists() else '').name
    if latest.is_file():
        cfg.resume, cfg.load_from = True, str(latest)
    with (work_dir / 'train.log').open('a') as log, \
            contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            runner = Runner.from_cfg(cfg)
        except SyntaxError as error:
            # mmengine makes it of Ctrl-C in the middle of writing the config.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        runner.register_hook(watch, priority='LOWEST')
        try:
            runner.train()
            # mmengine saves first, and validates no epoch that it resumes.
            if runner.val_loop and watch.validated != runner.epoch:
                runner.val_loop.run()
        finally:
            for handler in runner.logger.handlers:
                handler.close()
            runner.logger.handlers.clear()
    del runner
    gc.collect()


def _settings(training: Training) -> str:
    """Everything that the result depends on."""
    settings = training.cfg.to_dict()
    try:
        compat.prepare_amp(training.cfg)
    except ValueError as error:
        raise TrainingError(f'{training.work_dir}: {error}') from error
    teacher = settings['model'].get('teacher_ckpt')
    if teacher and '://' not in str(teacher):
        if not Path(teacher).is_file():
            raise TrainingError(f'{training.work_dir}: there is no '
                                f'model.teacher_ckpt={teacher}')
        # Its content counts, wherever it lies.
        digest = hashlib.sha256(Path(teacher).read_bytes())
        settings['model']['teacher_ckpt'] = f'sha256 {digest.hexdigest()}'
    return json.dumps(
        dict(wsld_plugin=__version__, **settings), indent=1, default=str)


def _finished(training: Training, settings: str) -> bool:
    """Whether nothing is left to do; refuses the folder of another."""
    folder = training.work_dir
    if (folder / 'settings.json').exists():
        lines = (folder / 'settings.json').read_text().splitlines()
    elif any(folder.glob('*.pth')):
        raise TrainingError(
            f'{folder} holds a training that another program began: remove '
            'it, or choose another folder')
    else:
        return False
    for there, here in zip_longest(lines, settings.splitlines()):
        if there != here:
            raise TrainingError(
                f'{folder} holds another training ({str(there).strip(" ,")} '
                f'there, {str(here).strip(" ,")} here): remove it, or choose '
                'another folder')
    return (folder / 'finished').exists() and training.checkpoint.exists()


def _locked(folder: Path) -> Any:
    """A context inside of which nobody else trains in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(str(folder / 'training.lock')).acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f'{folder} is being trained by another process') from error
