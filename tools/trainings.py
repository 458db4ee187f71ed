"""Run tools/train.py several times: side by side, resumed, never repeated."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

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

from wsld_plugin import __version__
from wsld_plugin.analysis import History, read_history
from wsld_plugin.checkpoints import write_atomically

# Trainings of students that run side by side: small networks leave cores of
# one process idle.
SIDE_BY_SIDE = 2
MOST_THREADS = 8


class TrainingError(RuntimeError):
    """A training ended with an error; one line says which and why."""


class BusyError(TrainingError):
    """Another process is at a training."""


@dataclass(frozen=True, eq=False)
class Training:
    """One run of tools/train.py, told apart by its folder.

    Attributes:
        config: Config file.
        work_dir: Folder for checkpoints and logs, the run's own.
        seed: Seed of the run.
        options: Further overrides of the config, by dotted key.
        teacher: Checkpoint that the run distils from.
    """

    config: Path
    work_dir: Path
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: Path | None = None

    @cached_property
    def cfg(self) -> Config:
        """The config with its overrides."""
        cfg = Config.fromfile(self.config)
        cfg.merge_from_dict({'randomness.seed': self.seed, **self.options})
        return cfg

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return int(self.cfg.train_cfg.max_epochs)

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

    @property
    def validated(self) -> bool:
        """Whether the last epoch was validated, if the config asks for it."""
        cfg = self.cfg
        if not (cfg.get('val_cfg') is not None and cfg.get('val_dataloader')):
            return True
        # mmengine's default interval is 1.
        return (self.epochs % cfg.train_cfg.get('val_interval', 1) > 0
                or self.epochs < cfg.train_cfg.get('val_begin', 1)
                or self.epochs in self.history().validations)

    @property
    def occupied(self) -> bool:
        """Whether the folder holds a training that is not this one."""
        held = self._mark.get('training')
        return held != self._digest and (
            held is not None or any(self.work_dir.glob('*.pth')))

    @property
    def overrides(self) -> list[str]:
        """What the training has beyond its config, as ``KEY=VALUE``."""
        overrides = {'randomness.seed': self.seed, **self.options}
        if self.teacher is not None:
            overrides['model.teacher_ckpt'] = self.teacher
        return [f'{key}={value}' for key, value in overrides.items()]

    @property
    def command(self) -> list[str]:
        """The training as a command line."""
        return [
            sys.executable,
            str(ROOT / 'tools' / 'train.py'),
            str(self.config), '--work-dir',
            str(self.work_dir), '--resume', '--cfg-options', *self.overrides
        ]

    def start(self,
              threads: int,
              command: Sequence[str] | None = None,
              environment: Mapping[str, str] | None = None
              ) -> subprocess.Popen:
        """Start, or go on after the last epoch of an interrupted run.

        Args:
            threads: For computing, of each process.
            command: What to call in place of :attr:`command`.
            environment: Variables that the process gets besides ours.

        Raises:
            BusyError: If another process is at it, such as one that was
                left behind when this program was killed.
        """
        with self._locked_log() as log:
            if (self._mark.get('training') != self._digest
                    # Its checkpoint was removed.
                    or self._mark.get('finished', False)):
                self._discard()
                log.truncate(0)
            elif self.checkpoint.exists() and not self.validated:
                self._step_back()
            self._write_mark(finished=False)
            return _launch(command or self.command, log, threads, environment)

    def follow_up(self, threads: int, command: Sequence[str],
                  environment: Mapping[str, str]) -> subprocess.Popen:
        """Start something else on the finished training, into its log.

        Args:
            threads: As for :meth:`start`.
            command: What to call.
            environment: As for :meth:`start`.

        Raises:
            BusyError: As :meth:`start`.
        """
        with self._locked_log() as log:
            return _launch(command, log, threads, environment)

    def finish(self) -> None:
        """Note that the run is complete; keep its last checkpoint only."""
        for path in self.work_dir.glob('epoch_*.pth'):
            if path != self.checkpoint:
                path.unlink()
        self._write_mark(finished=True)

    def history(self) -> History:
        """What mmengine logged so far."""
        return read_history(self.work_dir)

    @cached_property
    def _digest(self) -> str:
        """Identifies everything that the result depends on."""
        digest = hashlib.sha256(
            f'{__version__}\n{self.cfg.pretty_text}'.encode())
        if self.teacher is not None:
            digest.update(self.teacher.read_bytes())
        return digest.hexdigest()

    def _locked_log(self) -> IO[str]:
        """The log, locked until all processes that inherit it have ended."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        log = self.log.open('a')
        if not _lock(log):
            log.close()
            raise BusyError(f'{short(self.work_dir)} is being trained by '
                            'another process')
        return log

    @property
    def _mark_file(self) -> Path:
        return self.work_dir / 'training.json'

    @property
    def _mark(self) -> dict[str, Any]:
        try:
            return json.loads(self._mark_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _write_mark(self, *, finished: bool) -> None:
        mark = {
            'training': self._digest,
            'finished': finished,
            **self._record(finished)
        }
        write_atomically(self._mark_file,
                         f'{json.dumps(mark, indent=1)}\n'.encode())

    def _record(self, finished: bool) -> dict[str, Any]:
        """What else is written down when a training starts or ends."""
        return {}

    def _step_back(self) -> None:
        """Forget the last epoch, which was killed while it was validated.

        mmengine saves first, and does not validate what it resumes.
        """
        self.checkpoint.unlink()
        last = self.work_dir / 'last_checkpoint'
        # Not the students' own files beside them.
        epochs = {
            int(match[1]): path
            for path in self.work_dir.glob('epoch_*.pth')
            if (match := re.fullmatch(r'epoch_(\d+)', path.stem))
        }
        if epochs:
            write_atomically(last, str(epochs[max(epochs)]).encode())
        else:
            last.unlink(missing_ok=True)

    def _discard(self) -> None:
        """Remove what another training left and this one might mistake."""
        for pattern in ('epoch_*.pth', 'last_checkpoint', '*.npy'):
            for path in self.work_dir.glob(pattern):
                path.unlink()
        for path in self.work_dir.glob('*/vis_data'):
            shutil.rmtree(path.parent)


def train(trainings: Sequence[Training],
          console: Console,
          side_by_side: int,
          before_finish: Callable[[Training], None] | None = None) -> None:
    """Run the trainings that are not finished, a few at a time.

    Args:
        trainings: In the order of their start.
        console: Where to print; shows bars if it is a terminal.
        side_by_side: How many run at once at most.
        before_finish: Called for each training that has ended, while its
            checkpoints of all epochs are there. If the program is killed
            within, it is called again the next time.

    Raises:
        TrainingError: If a training fails; the others are stopped, and go on
            from their last epoch the next time.
    """
    for training in trainings:
        if training.finished:
            console.print(
                f'Reused   {short(training.work_dir)}',
                soft_wrap=True,
                markup=False)
    waiting = [
        training for training in trainings if not training.finished
    ]
    side_by_side = min(side_by_side, len(waiting))
    threads = threads_each(side_by_side)
    running: dict[Training, tuple[subprocess.Popen, Any, float]] = {}
    progress = bars(console)
    try:
        with progress:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    training = waiting.pop(0)
                    if not console.is_terminal:
                        console.print(
                            f'Training {short(training.work_dir)}',
                            soft_wrap=True,
                            markup=False)
                    task = progress.add_task(
                        f'Training {short(training.work_dir)}',
                        total=training.epochs,
                        state=epochs_state(training.history()))
                    running[training] = (training.start(threads), task,
                                         time.monotonic())
                time.sleep(0.2)
                for training, (process, task, began) in list(running.items()):
                    history = training.history()
                    progress.update(
                        task,
                        completed=max(history.steps, default=0),
                        state=epochs_state(history))
                    code = process.poll()
                    if code is None:
                        continue
                    del running[training]
                    if code != 0:
                        raise TrainingError(failure(training, code))
                    if before_finish is not None:
                        before_finish(training)
                    training.finish()
                    progress.remove_task(task)
                    progress.console.print(
                        f'Trained  {short(training.work_dir)}: val '
                        f'{last_accuracy(training.history())}% after '
                        f'{training.epochs} epochs, '
                        f'{duration(time.monotonic() - began)}',
                        soft_wrap=True,
                        markup=False)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.wait()


def bars(console: Console) -> Progress:
    """A bar of epochs for each training, on a terminal only.

    Its tasks have the field ``state``, see :func:`epochs_state`.
    """
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[state]}'),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal)


def epochs_state(history: History) -> str:
    """What stands behind the number of epochs in a training's bar."""
    return f'epochs, val {last_accuracy(history)}%'


def threads_each(side_by_side: int) -> int:
    """Threads for each of several trainings on this machine."""
    return max(1, min(MOST_THREADS, _cores() // max(1, side_by_side)))


def short(path: Path) -> str:
    """Path as seen from the repository, where it is inside."""
    return str(path.relative_to(ROOT) if ROOT in path.parents else path)


def duration(seconds: float) -> str:
    """Minutes and seconds, to read."""
    return f'{seconds // 60:.0f} min {seconds % 60:.0f} s'


def last_accuracy(history: History) -> str:
    """Of the last validation, to read."""
    accuracies = history.validation('accuracy/top1')
    return f'{accuracies[max(accuracies)]:.1f}' if accuracies else '-'


def failure(training: Training, code: int) -> str:
    """How a training ended that failed, with the last line of its log."""
    lines = training.log.read_text(errors='replace').split('\n')
    last = next((line for line in reversed(lines) if line.strip()), '')
    return (f'{short(training.work_dir)} ended with exit code {code} '
            f'({last.strip()}), see {short(training.log)}')


def _launch(command: Sequence[str], log: IO[str], threads: int,
            environment: Mapping[str, str] | None) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            'OMP_NUM_THREADS': str(threads),
            'MKL_NUM_THREADS': str(threads),
            # Threads that spin while they wait slow a busy machine down
            # several times.
            'OMP_WAIT_POLICY': 'PASSIVE',
            **(environment or {}),
        })


def _lock(file: IO) -> bool:
    """Lock a file; False if it is locked already."""
    # Not on Windows, where the rest of the package can be imported.
    import fcntl
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems cannot.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
