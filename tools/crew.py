"""Work on the runs of a plan: several at once, whatever fails."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from command_line import fail
from environment import ROOT
from plans import Command, Run
from rich.console import Console
from rich.progress import TaskID
from trainings import (
    BusyError,
    bars,
    duration,
    epochs_state,
    failure,
    last_accuracy,
    short,
    threads_each,
)

# Seconds between two looks at the processes, and at their logs.
LOOK, READ = 0.1, 2.0


@dataclass(frozen=True)
class Launcher:
    """What starts the processes of a run.

    Attributes:
        kind: ``'none'``, ``'pytorch'`` or ``'slurm'``.
        gpus: Of each run.
        partition: Of slurm.
    """

    kind: str = 'none'
    gpus: int = 1
    partition: str | None = None

    @property
    def machines(self) -> int:
        """How many take part in each run; slurm sees to that itself."""
        return int(
            os.environ.get('NNODES', 1)) if self.kind == 'pytorch' else 1

    @property
    def is_first(self) -> bool:
        """Whether this machine keeps the books."""
        return self.machines == 1 or os.environ.get('NODE_RANK', '0') == '0'

    def train(self, run: Run) -> Command:
        """The training, or the rest of it."""
        # After the config, and after the script's own arguments.
        own = ['--work-dir', str(run.work_dir)]
        others = ['--resume', '--cfg-options', *run.overrides]
        config = str(run.config)
        if self.kind == 'none':
            return Command(run.command, {})
        if self.kind == 'slurm':
            return self._slurm('slurm_train.sh', run,
                               [config, str(run.work_dir), *others], self.gpus)
        variables = {
            key: os.environ[key]
            for key in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT')
            if self.machines > 1
        }
        return Command(
            ['bash', _tool('dist_train.sh'), config,
             str(self.gpus), *own, *others], {
                 **variables, 'PYTHON': sys.executable
             })

    def test(self, run: Run) -> Command:
        """The evaluation of the test split, by one process."""
        arguments = [
            str(run.config),
            str(run.checkpoint), '--work-dir',
            str(run.work_dir / 'test'), '--out',
            str(run.test_file), '--out-item', 'metrics', '--cfg-options',
            *run.overrides
        ]
        if self.kind == 'slurm':
            return self._slurm('slurm_test.sh', run, arguments, 1)
        return Command([sys.executable, _tool('test.py'), *arguments], {})

    def _slurm(self, script: str, run: Run, arguments: Sequence[str],
               gpus: int) -> Command:
        name = f'{run.plan}_{run.name}_seed-{run.seed}'
        return Command(
            ['bash', _tool(script),
             str(self.partition), name, *arguments], {
                 'GPUS': str(gpus),
                 'PYTHON': sys.executable
             })


@dataclass
class Job:
    """A run that is being trained or tested.

    Attributes:
        run: Which.
        slot: Variables that give it some of the GPUs.
        process: That works on it.
        task: Its bar.
        testing: Whether it is trained already.
        began: When it was started.
        first: Epochs that it had then.
    """

    run: Run
    slot: dict[str, str]
    process: subprocess.Popen
    task: TaskID
    testing: bool = False
    began: float = field(default_factory=time.monotonic)
    first: int = 0


def slots(launcher: Launcher, jobs: int | None,
          left: Sequence[Run]) -> list[dict[str, str]]:
    """Variables of as many runs as are at work at once."""
    if launcher.kind == 'slurm':
        return [{}] * min(jobs or len(left), len(left))
    gpus = visible_gpus()
    if gpus and launcher.gpus > len(gpus):
        fail(f'--gpus {launcher.gpus}: there are {len(gpus)}')
    groups = [
        gpus[first:first + launcher.gpus]
        for first in range(0,
                           len(gpus) - launcher.gpus + 1, launcher.gpus)
    ]
    jobs = jobs or (max(1, len(groups)) if launcher.machines == 1 else 1)
    return [
        {'CUDA_VISIBLE_DEVICES': ','.join(groups[job % len(groups)])}
        if groups else {} for job in range(min(jobs, len(left)))
    ]


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    names = os.environ.get('CUDA_VISIBLE_DEVICES')
    return names.split(',')[:count] if names else [*map(str, range(count))]


class Crew:
    """Trains and tests runs, several at once, whatever fails.

    Args:
        runs: Teachers first.
        console: Where to print.
        launcher: Of each run.
        slots: As many runs are at work at once.

    Attributes:
        failed: Why, by run.
    """

    def __init__(self, runs: Sequence[Run], console: Console,
                 launcher: Launcher, slots: Sequence[dict[str, str]]) -> None:
        self.waiting = list(runs)
        self.launcher = launcher
        self.free = list(slots)
        # Of another machine nothing is known, torchrun takes 1 as well.
        self.threads = 1 if launcher.kind == 'slurm' else threads_each(
            len(slots) * launcher.gpus)
        self.places = len(slots)
        self.jobs: list[Job] = []
        self.failed: dict[Run, str] = {}
        self.finished = 0
        self.count = len(runs)
        self.console = console
        self.bars = bars(console)
        self.total = self.bars.add_task(
            'Runs', total=self.count, state='runs')
        self.busy: set[Run] = set()
        # For the time left: epochs of this session and what they took.
        self.epochs, self.seconds = 0, 0.0

    def work(self) -> None:
        """Until all are finished or have failed.

        Raises:
            KeyboardInterrupt: Of the user, or of a queue that ends this
                program; the processes are stopped then.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        looked = 0.0
        try:
            with self.bars:
                while self.waiting or self.jobs:
                    self.start_what_can_start()
                    time.sleep(LOOK)
                    for job in list(self.jobs):
                        if (code := job.process.poll()) is not None:
                            self.end(job, code)
                    if time.monotonic() - looked > READ:
                        looked = time.monotonic()
                        self.show()
        finally:
            for job in self.jobs:
                job.process.terminate()
            for job in self.jobs:
                job.process.wait()
            signal.signal(signal.SIGTERM, before)

    def start_what_can_start(self) -> None:
        """Fill the free slots."""
        for run in list(self.waiting):
            if run.needs is not None and run.needs in self.failed:
                self.waiting.remove(run)
                self.fail(run, f'{short(run.work_dir)} needs '
                          f'{run.needs.title}, which failed')
            elif (self.free and (run.needs is None or run.needs.finished
                                 or run.finished) and self.start(run)):
                self.waiting.remove(run)

    def start(self, run: Run) -> bool:
        """Start a run, unless another process is at it."""
        if run.done:  # by the process that was at it
            self.succeed(run)
            return True
        slot = self.free[0]
        testing = run.finished
        command = (self.launcher.test if testing else self.launcher.train)(run)
        call = run.follow_up if testing else run.start
        try:
            process = call(self.threads, command.arguments, {
                **slot,
                **command.environment
            })
        except BusyError as error:
            if run not in self.busy:
                self.busy.add(run)
                self.bars.console.print(
                    f'Waiting: {error}', soft_wrap=True, markup=False)
            return False
        del self.free[0]
        self.say('Testing ' if testing else 'Training', run)
        task = self.bars.add_task(
            f'Training {short(run.work_dir)}',
            total=run.epochs,
            state=epochs_state(run.history()))
        self.jobs.append(
            Job(run, slot, process, task, testing, first=epochs_of(run)))
        return True

    def end(self, job: Job, code: int) -> None:
        """A process has ended: go on to the test, or be done."""
        run = job.run
        self.jobs.remove(job)
        self.free.append(job.slot)
        self.bars.remove_task(job.task)
        if code != 0:
            self.fail(run, failure(run, code))
        elif job.testing:
            if run.test_file.exists():
                self.succeed(run)
            else:
                self.fail(run, f'{short(run.work_dir)} left no '
                          f'{run.test_file.name}, see {short(run.log)}')
        elif not run.checkpoint.exists():
            self.fail(run, f'{short(run.work_dir)} left no '
                      f'{run.checkpoint.name}, see {short(run.log)}')
        else:
            self.epochs += max(0, epochs_of(run) - job.first)
            self.seconds += time.monotonic() - job.began
            run.finish()
            self.say(
                'Trained ', run,
                f': val {last_accuracy(run.history())}% after {run.epochs} '
                f'epochs, {duration(run.seconds)}')
            if run.tests:
                self.waiting.insert(0, run)
            else:
                self.succeed(run)

    def succeed(self, run: Run) -> None:
        """Count a run that is done."""
        self.finished += 1
        if run.tests:
            self.say('Tested  ', run)
        self.tell_state()

    def fail(self, run: Run, why: str) -> None:
        """Count a run that cannot be done."""
        self.failed[run] = why
        # What a log ends with may look like markup, as torch's [rank0].
        self.bars.console.print(
            f'Failed   {why}', soft_wrap=True, markup=False)
        self.tell_state()

    def say(self, what: str, run: Run, more: str = '') -> None:
        """Print a line about a run."""
        self.bars.console.print(
            f'{what} {short(run.work_dir)}{more}',
            soft_wrap=True,
            markup=False)

    def tell_state(self) -> None:
        """Print how far it is, where no bar shows it."""
        self.show()
        if not self.console.is_terminal:
            self.console.print(self.state, soft_wrap=True)

    def show(self) -> None:
        """Bring the bars up to date."""
        self.bars.update(
            self.total,
            description=self.state,
            completed=self.finished + len(self.failed))
        if not self.console.is_terminal:
            return
        for job in self.jobs:
            history = job.run.history()
            self.bars.update(
                job.task,
                completed=max(history.steps, default=0),
                state=epochs_state(history))

    @property
    def state(self) -> str:
        """Counts, and the time left as far as it is known."""
        text = (f'{self.finished} of {self.count} runs done, '
                f'{len(self.jobs)} at work, {len(self.failed)} failed')
        if not (self.waiting or self.jobs):
            return text
        epochs, seconds = self.epochs, self.seconds
        left = sum(run.epochs - epochs_of(run) for run in self.waiting)
        for job in self.jobs:
            done = epochs_of(job.run)
            left += job.run.epochs - done
            if done > job.first:
                epochs += done - job.first
                seconds += time.monotonic() - job.began
        if epochs:
            remaining = left * seconds / epochs / self.places
            text += f', about {duration(remaining)} left'
        return text


def epochs_of(run: Run) -> int:
    """Epochs that a run has behind it."""
    return min(run.epochs, max(run.history().steps, default=0))


def _tool(name: str) -> str:
    return str(ROOT / 'tools' / name)
