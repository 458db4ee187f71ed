"""One call: a folder of pictures, a teacher and a student; a report."""
from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mmengine import dist

from ..checkpoints import locked
from ..datasets import read_folder
from .processes import join_processes, on_first
from .settings import DistilError, check, settle
from .stages import run_stages


class DistilResult(NamedTuple):
    """What :func:`distil` made.

    Attributes:
        student: The student's own file, for ``mmpretrain.get_model``.
        accuracy: Its top-1 accuracy on the test split, in %.
        report: Page with everything that was found.
        config: The training's config, to go on from by hand.
        onnx: The student for other programs; ``None`` if not wanted or
            without the packages.
        metrics: Content of ``metrics.json``.
    """

    student: Path
    accuracy: float
    report: Path
    config: Path
    onnx: Path | None
    metrics: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Test accuracy of each network, with its 95% interval."""
        return pd.DataFrame([{
            'network': name, 'is': found['what'],
            'test accuracy (%)': f'{found["accuracy"]:.1f}',
            '95% interval': '{:.1f} to {:.1f}'.format(*found['interval']),
        } for name, found in self.metrics['networks'].items()])


def distil(data: str | Path,
           teacher: str | Sequence[str] = 'resnet34',
           student: str = 'resnet18',
           *,
           work_dir: str | Path | None = None,
           epochs: int = 30,
           teacher_epochs: int | None = None,
           tau: float | str = 'auto',
           alpha: float | str = 'auto',
           baseline: bool = False,
           combine: str = 'probabilities',
           teacher_weights: Sequence[float] | None = None,
           size: int | None = None,
           batch_size: int | None = None,
           flip: bool = True,
           seed: int = 0,
           onnx: bool = True,
           launcher: str = 'none') -> DistilResult:
    """Distil a teacher into a student on a folder of pictures.

    Everything is written into one folder. The same call again goes on where
    it was cut, and reuses what is finished. Settings are chosen on the
    validation split; the test split is looked at once, at the end.

    Args:
        data: Folder ``CLASS/*.jpg`` or ``{train,val,test}/CLASS/*.jpg``.
        teacher: One network or several: a name of mmpretrain's zoo,
            ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME``,
            ``python:MODULE.FUNCTION``, ``CONFIG.py@CHECKPOINT.pth`` or the
            folder of a finished training; with ``@none`` it starts from
            random weights, with ``@FILE`` from those. It is trained on the
            folder, unless its classes are the folder's already.
        student: Likewise; by default with random weights.
        work_dir: By default ``work_dirs/distil_FOLDER``.
        epochs: Of the student.
        teacher_epochs: Of each teacher; by default as many.
        tau: Temperature, or ``'auto'``: by short trials.
        alpha: Weight of the soft labels, or ``'auto'``.
        baseline: Whether to train the student alone, too, to compare.
        combine: What of several teachers is averaged, ``'probabilities'`` or
            ``'logits'``.
        teacher_weights: Of the teachers; by default equal.
        size: Height and width of the student's input in pixels; by default
            by the pictures'.
        batch_size: Pictures of a step, in each process.
        flip: Whether a mirrored picture is of the same class.
        seed: Of the split and of everything random.
        onnx: Whether to write the student as ONNX, too.
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'`` if that started this
            process; all its processes make the same call.

    Raises:
        DistilError: If an argument is wrong, or the folder another call's.
        PictureFolderError: If the pictures cannot be learnt from.
        NetworkError: If a network or its weights cannot be had.
        TrainingError: If a training is at work elsewhere.
    """
    asked = dict(locals())
    asked = check({name: asked[name] for name in asked if name not in
                   ('data', 'work_dir', 'launcher')})
    root = Path(data)
    out = Path(work_dir or Path('work_dirs', f'distil_{root.resolve().name}'))
    try:
        join_processes(launcher)
    except ValueError as error:
        raise DistilError(str(error)) from error
    with ExitStack() as locks:
        # Each loader collects garbage: it need not look at the packages, too.
        gc.freeze()
        locks.callback(gc.unfreeze)
        on_first(_lock, out, root, locks)
        folder = on_first(read_folder, root, seed)
        settled = on_first(settle, asked, folder, dist.get_world_size(), out)
        if not on_first((out / 'metrics.json').exists):
            run_stages(folder, settled, out, launcher)
        return on_first(_result, out)


def _result(out: Path) -> DistilResult:
    """What stands in a finished call's folder."""
    found = json.loads((out / 'metrics.json').read_text())
    files = {name: path and out / path
             for name, path in found['files'].items()}
    accuracy = found['networks']['student distilled']['accuracy']
    return DistilResult(accuracy=accuracy, metrics=found, **files)


def _lock(out: Path, root: Path, locks: ExitStack) -> None:
    """Let nobody else into the call's folder."""
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise DistilError(f'work_dir={out} lies among the pictures of data='
                          f'{root}: choose a folder beside them')
    if root.is_dir():  # or read_folder will say so
        locks.enter_context(locked(out / 'call.lock', DistilError(
            f'{out} is being worked on by another process')))
