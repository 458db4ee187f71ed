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
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from .. import compat
from ..analysis import read_history
from ..checkpoints import locked, write_atomically
from ..version import __version__
from .processes import join_processes, on_first


class TrainingError(ValueError):
    """A training cannot begin or go on; one line says why."""


@dataclass(frozen=True)
class Training:
    """A training by epochs, told apart by its folder.

    Attributes:
        cfg: All of its settings. Its checkpoint hook must write
            ``epoch_N.pth`` of the last epoch, in the work dir.
        work_dir: Folder for checkpoints and logs, the training's own.
        base: A folder that may be moved with the work dir, and that paths of
            the settings may lie in.
    """

    cfg: Config
    work_dir: Path
    base: Path | None = None

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return int(self.cfg.train_cfg.max_epochs)

    @property
    def checkpoint(self) -> Path:
        """The last epoch's checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def result(self) -> dict[str, float]:
        """Of a finished training: the ``seconds`` that its epochs and its
        start took, and the last validation's ``accuracy`` if it has one.
        """
        found = (self.work_dir / 'finished').read_text()
        return dict(json.loads(found))


def run_trainings(trainings: Sequence[Training],
                  finish: Callable[[Training], Any] | None = None) -> None:
    """Run those that are not finished, in this process and in order.

    A training that was cut goes on after its last checkpoint. Its settings,
    which include this package's version and the teacher's file, are kept as
    ``settings.json``, and no training goes on in a folder with others. What
    is printed meanwhile goes to ``train.log``; stdout gets a line for each
    training and, on a terminal, one bar with the time left. Only the last
    checkpoint of a finished training stays. The global random state is
    changed. With ``cfg.launcher`` all its processes call this; the first
    one writes.

    Args:
        trainings: In the order to run.
        finish: Called in the first process when a training has ended, while
            its checkpoints of all epochs are there. If the program is killed
            within, it is called again the next time.

    Raises:
        TrainingError: Before anything runs, if a teacher's file is missing
            or a folder holds another training; or when its turn comes, if
            another process is at a training.
    """
    for training in trainings:
        join_processes(training.cfg.get('launcher', 'none'))
    console = Console(
        file=sys.stdout,
        soft_wrap=True,
        markup=False,
        quiet=not dist.is_main_process())
    waiting = []
    for training in trainings:
        settings = on_first(_settings, training)
        if on_first(_finished, training, settings):
            console.print(f'Reused   {training.work_dir}')
        else:
            waiting.append((training, settings))
    with Progress(
            console=console, transient=True,
            disable=not console.is_terminal) as bar:
        task = bar.add_task('', total=sum(run.epochs for run, _ in waiting))
        for training, settings in waiting:
            name = escape(training.work_dir.name)
            bar.update(task, description=f'Training {name}')
            if not console.is_terminal:
                console.print(f'Training {training.work_dir}')
            watch = _Watch(bar, task)
            with contextlib.ExitStack() as locks:
                latest = on_first(_begin, training, settings, locks)
                _train(training, latest, watch)
                on_first(_finish, training, watch, finish)
            accuracy = ('' if watch.accuracy is None else
                        f'val {watch.accuracy:.1f}%, ')
            console.print(
                f'Trained  {training.work_dir}: {accuracy}'
                f'{training.epochs} epochs, '
                f'{timedelta(seconds=round(watch.seconds))}')


class _Watch(Hook):
    """Moves the bar, and notes the time and the last validation."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self.bar, self.task, self.began = bar, task, time.monotonic()
        self.accuracy: float | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def before_train(self, runner: Runner) -> None:
        self.bar.advance(self.task, runner.epoch)
        # Of the epochs before the training was cut.
        self.began -= runner.message_hub.get_info('seconds', 0)

    def after_train_epoch(self, runner: Runner) -> None:
        self.bar.advance(self.task)
        runner.message_hub.update_info('seconds', self.seconds)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        self.accuracy = (metrics or {}).get('accuracy/top1')


def _train(training: Training, latest: str | None, watch: _Watch) -> None:
    """Train, or go on after the latest checkpoint."""
    work_dir, cfg = training.work_dir, deepcopy(training.cfg)
    compat.prepare_amp(cfg)
    compat.prepare_distributed(cfg)
    for split in ('train', 'val'):
        if cfg.get(f'{split}_dataloader'):
            cfg[f'{split}_dataloader'].setdefault(
                'pin_memory', torch.cuda.is_available())
    cfg.work_dir = str(work_dir)
    # mmengine shares loggers and more between runs of one name and second.
    place = hashlib.sha256(str(work_dir.resolve()).encode()).hexdigest()[:8]
    cfg.experiment_name = f'{work_dir.name}_{place}'
    if latest is not None:
        cfg.resume, cfg.load_from = True, latest
    with (work_dir / 'train.log').open('a') as log, \
            contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            runner = Runner.from_cfg(cfg)
        except SyntaxError as error:
            # mmengine makes it of Ctrl-C in the middle of writing the config.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        # Before a checkpoint is written, which holds the time.
        runner.register_hook(watch, priority='HIGHEST')
        try:
            runner.train()
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
    # How it is computed, not what; another machine's torch may lack it.
    settings.get('optim_wrapper', {}).get('optimizer', {}).pop('fused', None)
    teacher = settings['model'].get('teacher_ckpt')
    if teacher and '://' not in str(teacher):
        if not Path(teacher).is_file():
            raise TrainingError(f'{training.work_dir}: there is no '
                                f'model.teacher_ckpt={teacher}')
        # Its content counts, wherever it lies.
        digest = hashlib.sha256(Path(teacher).read_bytes())
        settings['model']['teacher_ckpt'] = f'sha256 {digest.hexdigest()}'
    text = json.dumps(
        dict(wsld_plugin=__version__, **settings), indent=1, default=str)
    base = training.base
    return text.replace(json.dumps(str(base.absolute()))[1:-1],
                        '.') if base else text


def _finished(training: Training, settings: str) -> bool:
    """Whether nothing is left to do; refuses the folder of another."""
    folder = training.work_dir
    if not any(folder.glob('*.pth')):
        # What began there, maybe with a mistake, is no loss.
        return False
    if not (folder / 'settings.json').exists():
        raise TrainingError(
            f'{folder} holds a training that another program began: remove '
            'it, or choose another folder')
    lines = (folder / 'settings.json').read_text().splitlines()
    for there, here in zip_longest(lines, settings.splitlines()):
        if there != here:
            raise TrainingError(
                f'{folder} holds another training ({str(there).strip(" ,")} '
                f'there, {str(here).strip(" ,")} here): remove it, or choose '
                'another folder')
    return (folder / 'finished').exists() and training.checkpoint.exists()


def _begin(training: Training, settings: str,
           locks: contextlib.ExitStack) -> str | None:
    """Let nobody else in, and say which checkpoint is there to go on."""
    folder = training.work_dir
    locks.enter_context(locked(folder / 'training.lock', TrainingError(
        f'{folder} is being trained by another process')))
    write_atomically(folder / 'settings.json', settings)
    last = folder / 'last_checkpoint'
    # The folder may have moved since.
    latest = folder / Path(last.read_text() if last.exists() else '').name
    return str(latest) if latest.is_file() else None


def _finish(training: Training, watch: _Watch,
            finish: Callable[[Training], Any] | None) -> None:
    if finish is not None:
        finish(training)
    result = dict(seconds=watch.seconds)
    accuracy = watch.accuracy
    if accuracy is None:  # killed after the last validation
        accuracy = read_history(training.work_dir).validation(
            'accuracy/top1').get(training.epochs)
    if accuracy is not None:
        result['accuracy'] = accuracy
    # Before what `finish` reads goes.
    write_atomically(training.work_dir / 'finished', json.dumps(result))
    for path in training.work_dir.glob('epoch_*.pth'):
        if path != training.checkpoint:
            path.unlink()
