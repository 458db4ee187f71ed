"""ResNet-34 to ResNet-18 on handwritten digits: nothing to download."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from mmengine.config import Config
from torch import Tensor

from ..analysis import (
    compare_runs,
    evaluation_loader,
    logits,
    read_history,
    student_network,
)
from ..analysis.drawing import png
from ..analysis.tables import mean_and_deviation, write_results
from ..checkpoints import export_student, read_checkpoint
from ..datasets import DigitsDataset
from .trainings import Training, run_trainings

_CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'


class DigitsResult(NamedTuple):
    """What :func:`distil_digits` trained and wrote.

    Attributes:
        table: Accuracy in % of each network on val and test, mean ± sample
            standard deviation over the seeds.
        student: The first distilled student's own file.
        curves: PNG file, accuracy and loss over the epochs.
        predictions: PNG file, test scans with what that student says.
    """

    table: pd.DataFrame
    student: Path
    curves: Path
    predictions: Path


def distil_digits(work_dirs: Path,
                  seeds: int = 3,
                  options: Mapping[str, Any] | None = None) -> DigitsResult:
    """Train a teacher, then students without and with it, and compare them.

    The same call again reuses what is finished and goes on where it was cut.
    Files are seen complete or not at all.

    Args:
        work_dirs: Folder for everything that is written.
        seeds: Trainings of each student, at least 1.
        options: Overrides of all configs, by dotted key.

    Raises:
        ValueError: If there are no seeds.
        TrainingError: As :func:`run_trainings`.
    """
    if seeds < 1:
        raise ValueError(f'seeds must be at least 1, got {seeds}')
    out = work_dirs / 'quickstart'
    teacher = _training('ce_r34_digits', work_dirs, options)
    run_trainings([teacher])
    plain, distilled = ([
        _training(config, work_dirs, options, seed, given)
        for seed in range(seeds)
    ] for config, given in (('ce_r18_digits', None),
                            ('wsld_r34_r18_digits', teacher.checkpoint)))
    run_trainings([run for pair in zip(plain, distilled) for run in pair])

    students = [_export(run, out) for run in distilled]
    # The student's file holds a network like that of plain training.
    rows, probs = zip(*(_row(*arguments) for arguments in (
        ('ResNet-34, the teacher', '', [teacher], teacher.cfg,
         [teacher.checkpoint]),
        ('ResNet-18', '', plain, plain[0].cfg,
         [run.checkpoint for run in plain]),
        ('ResNet-18, WSLD', ' and the teacher', distilled, plain[0].cfg,
         students))))
    write_results({out / 'predictions.png': _draw_predictions(*probs[-1])})
    compare_runs([run.work_dir for run in (teacher, *plain, *distilled)], out)
    return DigitsResult(
        pd.DataFrame(rows), students[0], out / 'runs.png',
        out / 'predictions.png')


def _training(config: str,
              work_dirs: Path,
              options: Mapping[str, Any] | None,
              seed: int | None = None,
              teacher: Path | None = None) -> Training:
    cfg = Config.fromfile(_CONFIGS / f'{config}.py')
    cfg.merge_from_dict({'randomness.seed': seed or 0, **(options or {})})
    if teacher is not None:
        cfg.model.teacher_ckpt = str(teacher)
    name = config if seed is None else f'{config}_seed{seed}'
    return Training(cfg, work_dirs / name)


def _row(network: str, more: str, runs: Sequence[Training], cfg: Config,
         files: Sequence[Path]) -> tuple[dict[str, str], Any]:
    """A row of the table, and what the first network predicts."""
    found = [_predict(cfg, file) for file in files]
    return {
        'network': network,
        'learns from': f'{_scans(runs[0])} scans{more}',
        f'val ({_size("val")})': mean_and_deviation(
            [_accuracies(run)[run.epochs] for run in runs]),
        f'test ({_size("test")})': mean_and_deviation([
            100 * float((probs.argmax(1) == labels).float().mean())
            for probs, labels in found
        ])
    }, found[0]


def _export(run: Training, out: Path) -> Path:
    """The distilled student as a file of its own, reused if up to date."""
    name = run.work_dir.name
    for path in out.glob(f'{name}_*.pth'):
        if path.stat().st_mtime >= run.checkpoint.stat().st_mtime:
            return path
        path.unlink()
    return export_student(str(run.checkpoint), str(out / name)).path


def _predict(cfg: Config, file: Path) -> tuple[Tensor, Tensor]:
    """Probabilities (N, 10) and labels (N,) of the test scans."""
    network = student_network(cfg, read_checkpoint(str(file)), str(file))
    batches = [(found.softmax(1), labels)
               for (found, ), labels in logits([network],
                                               evaluation_loader(cfg, 'test'))]
    probs, labels = map(torch.cat, zip(*batches))
    return probs, labels


def _draw_predictions(probs: Tensor, labels: Tensor) -> bytes:
    """Some test scans with what a student says: its errors, then others."""
    from matplotlib.figure import Figure
    digits = DigitsDataset('test')
    wrong = probs.argmax(1) != labels
    order = wrong.logical_not().long().argsort(stable=True)
    figure = Figure(figsize=(10, 6.2), layout='constrained')
    figure.suptitle(f'ResNet-18 distilled with WSLD: {int(wrong.sum())} of '
                    f'{len(labels)} test digits wrong, in red')
    for axes, index in zip(figure.subplots(4, 10).flat, order.tolist()):
        axes.imshow(digits[index]['img'], interpolation='nearest')
        axes.set_axis_off()
        text = (f'{int(probs[index].argmax())}  '
                f'{100 * float(probs[index].max()):.0f}%')
        if wrong[index]:
            text += f'\nis {int(labels[index])}'
        axes.set_title(
            text, fontsize=9, color='C3' if wrong[index] else 'black')
    return png(figure)


def _accuracies(run: Training) -> dict[int, float]:
    """Accuracy on the val split in percent, by epoch."""
    return read_history(run.work_dir).validation('accuracy/top1')


def _scans(run: Training) -> int:
    """Number of pictures that the network learns from."""
    return run.cfg.train_dataloader.dataset.get('indices') or _size('train')


def _size(split: str) -> int:
    return len(DigitsDataset(split))
