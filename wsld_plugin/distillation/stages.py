"""What one call does: teachers, search, students, files, report."""
from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.registry import MODELS

from ..caching import build_cache
from ..checkpoints import read_checkpoint, write_atomically
from ..datasets import PictureFolder, write_lists
from ..models import NetworkError, Source, build_network, find_network
from ..models.building import last_layers
from .processes import on_first
from .recipe import (
    Recipe,
    distillation_config,
    student_config,
    teacher_config,
    teacher_model,
)
from .results import write_findings
from .search import TRIALS, Choice, choose, trial_epochs
from .settings import make_recipe, searches
from .trainings import Training, run_trainings

_SEARCH, _ALONE, _DISTILLED = 'search', 'student alone', 'student distilled'


class Progress:
    """Says what comes and how long it takes, and keeps what it took.

    The plan has the epochs of each stage, in order.
    """

    def __init__(self, plan: dict[str, int]) -> None:
        self.plan, self.left, self.pace = plan, sum(plan.values()), 0.0
        self.times: dict[str, float] = {}
        self.say('To do: ' + ', '.join(
            f'{name} ({epochs} epochs)' for name, epochs in plan.items()))

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if dist.is_main_process():
            print(line, flush=True)

    def train(self, stage: str, run: Training) -> Training:
        """Run a training of a stage, the first one after its title."""
        if stage not in self.times:
            left = timedelta(seconds=round(self.pace * self.left))
            self.say(f'[{[*self.plan].index(stage) + 1}/{len(self.plan)}] '
                     f'{stage}' + (f'; {left} left at this pace' if left else
                                   ''))
        run_trainings([run])
        seconds = on_first(lambda: run.result['seconds'])
        self.times[stage] = self.times.get(stage, 0) + seconds
        self.pace, self.left = seconds / run.epochs, self.left - run.epochs
        return run


def run_stages(folder: PictureFolder, settled: dict[str, Any], out: Path,
               launcher: str) -> None:
    """Go through all stages in all processes; what is finished is reused."""
    recipe = make_recipe(folder, settled, out, launcher)
    on_first(write_lists, folder, recipe.lists)
    # Which tries the student at its size, before anything is kept.
    on_first(student_config, recipe)
    sources = [
        on_first(_teacher_source, spec, folder)
        for spec in settled['teacher']
    ]
    recipe = replace(
        recipe, student=on_first(_student, recipe, out / 'start.pth'))
    progress = Progress(_plan(settled, sources, folder))
    file = out / 'teacher.pth'
    on_first(
        _join, recipe, sources,
        [_teach(recipe, *args, out, progress) for args in enumerate(sources)],
        file)
    distillation = partial(
        distillation_config, recipe,
        teacher_model(recipe, sources, settled['combine'],
                      settled['teacher_weights']), file)
    if settled['cached']:
        distillation = partial(distillation, cache=out / 'teacher_cache')
        progress.say("Computing the teacher's answers, once for all epochs")
        build_cache(distillation(1.0, 1.0))

    def trial(tau: float, alpha: float) -> Training:
        cfg = distillation(tau, alpha, trial_epochs(recipe.epochs))
        return progress.train(
            _SEARCH,
            Training(cfg, out / 'trials' / f'tau{tau}_alpha{alpha}', out))

    chosen = Choice(settled['tau'], settled['alpha'], None)
    if searches(settled):
        chosen = choose(trial, *chosen[:2], settled['seed'])
        progress.say(f'Chosen: tau {chosen.tau:g}, alpha {chosen.alpha:g}')
    runs = {}
    if settled['baseline']:
        runs[_ALONE] = progress.train(
            _ALONE, Training(student_config(recipe), out / 'baseline', out))
    runs[_DISTILLED] = progress.train(
        _DISTILLED,
        Training(distillation(*chosen[:2]), out / 'student', out))
    progress.say('Writing the student and the report')
    on_first(write_findings, recipe, settled, chosen, runs, progress.times,
             out)


def _plan(settled: dict[str, Any], sources: list[Source],
          folder: PictureFolder) -> dict[str, int]:
    """Epochs of the stages that there will be."""
    epochs = settled['epochs']
    plan = {
        f'teacher {number + 1}': max(settled['teacher_epochs'], len(phases))
        for number, phases in enumerate(
            _phases(source, folder) for source in sources) if phases
    }
    if searches(settled):
        plan[_SEARCH] = TRIALS * trial_epochs(epochs)
    if settled['baseline']:
        plan[_ALONE] = epochs
    return {**plan, _DISTILLED: epochs}


def _phases(source: Source, folder: PictureFolder) -> tuple[str, ...]:
    """How a teacher is trained here."""
    if source.weights is None:
        return ('scratch', )
    # The same classes in the same order: it says what is asked for.
    return () if source.classes == folder.classes else ('head', 'all')


def _teach(recipe: Recipe, number: int, source: Source, out: Path,
           progress: Progress) -> Path | None:
    """Train a teacher if need be, and say where its weights are."""
    start = None
    for phase in _phases(source, recipe.folder):
        run = Training(
            teacher_config(recipe, source, phase, start),
            out / 'teachers' / f'{number + 1}_{phase}', out)
        start = progress.train(f'teacher {number + 1}', run).checkpoint
    return start


def _join(recipe: Recipe, sources: list[Source],
          checkpoints: list[Path | None], file: Path) -> None:
    """Write the weights of all teachers as those of one model."""
    if file.exists():
        return
    joint = {}
    for number, (source, path) in enumerate(zip(sources, checkpoints)):
        if path is None:
            model = teacher_model(recipe, [source])
            model['members'][0]['weights'] = source.weights
            weights = MODELS.build(model).state_dict()
        else:
            weights = read_checkpoint(str(path))['state_dict']
        joint.update({
            re.sub(r'(?<=^backbone\.networks\.)0', str(number), key): value
            for key, value in weights.items()
        })
    _write(file, joint, recipe)


def _student(recipe: Recipe, file: Path) -> str:
    """The student's spec, with weights in a file that fits its config."""
    source = find_network(recipe.student, 'student')
    if source.weights is None:
        return recipe.student
    if not file.exists():
        classes = len(recipe.folder.classes)
        network = build_network(source.network, classes, source.weights)
        weights = network.network.state_dict()
        if not network.is_init:
            # It starts as it would without a file, by the seed.
            for name in last_layers(network.network, classes):
                for key in ('weight', 'bias'):
                    weights.pop(f'{name}.{key}', None)
        _write(file, weights, recipe)
    return f'{recipe.student.rpartition("@")[0]}@{file.absolute()}'


def _teacher_source(spec: str, folder: PictureFolder) -> Source:
    """What a teacher's name means, if its weights fit and can be tuned."""
    source, classes = find_network(spec), len(folder.classes)
    if source.weights is None:
        return source
    network = build_network(source.network, classes, source.weights)
    if not network.is_init:
        # Its last layer is new, whatever the classes are called.
        source = source._replace(classes=None)
    if _phases(source, folder):
        try:
            last_layers(network, classes)
        except NetworkError as error:
            raise NetworkError(f'{spec} cannot be tuned: {error}') from error
    return source


def _write(file: Path, weights: dict[str, Any], recipe: Recipe) -> None:
    buffer = io.BytesIO()
    meta = dict(classes=recipe.folder.classes)
    torch.save(dict(state_dict=weights, meta=meta), buffer)
    write_atomically(file, buffer.getvalue())
