"""What a distillation found, in numbers."""
from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from ..version import __version__
from .cost import Cost

if TYPE_CHECKING:
    from ..datasets.folder import PictureFolder

_LIBRARIES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain',
              'mmrazor', 'timm', 'transformers')


class Judged(NamedTuple):
    """A network and what it says about the test pictures.

    Attributes:
        name: Its part: ``'teacher'``, ``'student alone'``, ``'student
            distilled'``.
        what: What it is: ``'resnet34, tuned on these pictures'``.
        probabilities: ``(N, C)``, float32, in the order of the test split;
            rows that are not finite count as wrong.
        cost: Of :func:`measure_cost`.
    """

    name: str
    what: str
    probabilities: Tensor
    cost: Cost


class Findings(NamedTuple):
    """All that is reported of a distillation.

    Attributes:
        folder: The pictures.
        networks: The teacher, maybe the student trained alone, and last the
            distilled student.
        work_dirs: Of trainings, by the name that their curve gets.
        settings: Arguments of the call, and what ``auto`` became.
        times: Seconds by stage.
        trials: Columns ``tau``, ``alpha``, ``accuracy`` on val in %.
        student: Its checkpoint, of :func:`export_student`.
        onnx: The same, of :func:`export_onnx` ``with_preprocessing``.
        config: Of the distillation.
    """

    folder: PictureFolder
    networks: list[Judged]
    work_dirs: dict[str, Path]
    settings: dict[str, Any]
    times: dict[str, float]
    trials: pd.DataFrame | None
    student: Path
    onnx: Path | None
    config: Path


def labels(findings: Findings) -> Tensor:
    """Labels (N,) of the test pictures.

    Raises:
        ValueError: If there are no test pictures, or a network's
            probabilities are not theirs.
    """
    found = torch.tensor(
        [label for _, label in findings.folder.splits['test']])
    expected = len(found), len(findings.folder.classes)
    for network in findings.networks:
        if network.probabilities.shape != expected or not len(found):
            raise ValueError(
                f'probabilities of {network.name}: expected {expected}, at '
                'least one row, for pictures and classes of the test split, '
                f'got {tuple(network.probabilities.shape)}')
    return found


def right(network: Judged, gt_labels: Tensor) -> Tensor:
    """For which pictures (N,) the likeliest class is the label."""
    found = network.probabilities
    return (found.argmax(1) == gt_labels) & found.isfinite().all(1)


def metrics(findings: Findings) -> dict[str, Any]:
    """The figures of a distillation, as JSON has them.

    Args:
        findings: With at least the teacher and the distilled student.

    Returns:
        ``test_pictures``: their number.
        ``networks``, by name: ``what``; ``correct`` of the test pictures;
        ``accuracy`` in %, its 95% Wilson ``interval``; the fields of Cost.
        ``comparisons`` of the distilled student, by the other's name:
        ``points`` that it is better by (in %), pictures right ``only_here``
        and ``only_there``, ``p_value`` of the exact McNemar test.
        ``classes``, by name: pictures by split, ``accuracy`` in % by
        network (None without test pictures).
        ``confused``: ``label``, ``prediction`` of the distilled student and
        ``pictures``, the most frequent mistake first.
        ``data``: ``digest``, pictures by split, ``left_out``, ``notes``.
        ``settings``, ``times`` in s, ``trials``, ``versions``, and the files
        ``student``, ``onnx``, ``config``.

    Raises:
        ValueError: As by :func:`labels`.
    """
    gt_labels, classes = labels(findings), findings.folder.classes
    hits = {network.name: right(network, gt_labels)
            for network in findings.networks}
    *others, distilled = hits
    trials = findings.trials
    sizes = {
        split: Counter(label for _, label in pictures)
        for split, pictures in findings.folder.splits.items()
    }
    found = dict(
        test_pictures=len(gt_labels),
        networks={
            network.name: dict(
                what=network.what,
                **_share(hits[network.name]),
                **network.cost._asdict())
            for network in findings.networks
        },
        comparisons={
            name: _comparison(hits[distilled], hits[name])
            for name in others
        },
        classes={
            name: dict(
                pictures={
                    split: count[number] for split, count in sizes.items()
                },
                accuracy={
                    network: _percent(hit[gt_labels == number])
                    for network, hit in hits.items()
                }) for number, name in enumerate(classes)
        },
        confused=[
            dict(label=classes[label], prediction=classes[prediction],
                 pictures=count)
            for label, prediction, count in confused(findings)
        ],
        data=dict(
            digest=findings.folder.digest,
            left_out=len(findings.folder.left_out),
            notes=findings.folder.notes,
            pictures={
                split: sum(count.values()) for split, count in sizes.items()
            }),
        trials=None if trials is None else json.loads(
            trials.to_json(orient='records')),
        settings=findings.settings,
        times=findings.times,
        versions=versions(),
        student=findings.student,
        onnx=findings.onnx and str(findings.onnx),
        config=findings.config)
    return json.loads(json.dumps(found, default=str))


def counts(network: Judged, gt_labels: Tensor) -> Tensor:
    """Test pictures ``(C, C)`` by label and likeliest class."""
    classes = network.probabilities.shape[1]
    pairs = gt_labels * classes + network.probabilities.argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def confused(findings: Findings) -> list[tuple[int, int, int]]:
    """Label, class taken for it and pictures, the most pictures first."""
    table = counts(findings.networks[-1], labels(findings))
    table.fill_diagonal_(0)
    pairs = [(*pair, int(table[tuple(pair)]))
             for pair in table.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])


def versions() -> dict[str, str]:
    """Of this package, what it builds on as far as loaded, and the system."""
    found = {'wsld_plugin': __version__, 'Python': platform.python_version()}
    for name in _LIBRARIES:
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return dict(found, system=platform.platform())


def _percent(hits: Tensor) -> float | None:
    return 100 * int(hits.sum()) / len(hits) if len(hits) else None


def _share(hits: Tensor) -> dict[str, Any]:
    test = binomtest(int(hits.sum()), len(hits))
    interval = test.proportion_ci(method='wilson')
    return dict(
        correct=int(hits.sum()),
        accuracy=_percent(hits),
        interval=[100 * interval.low, 100 * interval.high])


def _comparison(here: Tensor, there: Tensor) -> dict[str, Any]:
    first, second = int((here & ~there).sum()), int((there & ~here).sum())
    return dict(
        points=100 * (first - second) / len(here),
        only_here=first,
        only_there=second,
        p_value=float(binomtest(first, first + second).pvalue)
        if first + second else 1.0)
