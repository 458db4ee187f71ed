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
    """A network, what it is, and what it says about the test pictures.

    ``probabilities`` are ``(N, C)``, float32, in the order of the split; a
    row that is not finite counts as wrong.
    """

    name: str
    what: str
    probabilities: Tensor
    cost: Cost


class Findings(NamedTuple):
    """All that is reported of a distillation.

    ``networks`` are the teacher, maybe the student trained alone, and last
    the distilled student; ``work_dirs`` of trainings stand by the names that
    their curves get, ``times`` are seconds by stage, ``trials`` have columns
    such as ``tau`` and ``alpha``. ``student`` is of ``export_student``,
    ``onnx`` of ``export_onnx`` with the preprocessing inside.
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

    @property
    def gt_labels(self) -> Tensor:
        """Labels (N,) of the test pictures."""
        return torch.tensor(
            [label for _, label in self.folder.splits['test']])


def right(network: Judged, labels: Tensor) -> Tensor:
    """For which pictures (N,) the likeliest class is the label."""
    found = network.probabilities
    return (found.argmax(1) == labels) & found.isfinite().all(1)


def confusion(network: Judged, labels: Tensor) -> Tensor:
    """Numbers of pictures ``(C, C)``, by label and likeliest class."""
    classes = network.probabilities.shape[1]
    pairs = labels * classes + network.probabilities.argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def metrics(findings: Findings) -> dict[str, Any]:
    """The figures of a distillation, as JSON has them.

    Returns:
        ``networks``, by name: ``what``; ``correct`` of the ``pictures`` of
        the test split; ``accuracy`` in % and its 95% Wilson ``interval``;
        the fields of :class:`Cost`.
        ``comparisons`` of the distilled student, by the other's name:
        ``points`` of accuracy that it is better by, pictures that are right
        ``only_here`` and ``only_there``, ``p_value`` of the exact McNemar
        test.
        ``classes``: a record for each, with pictures by split and, as
        ``NAME (%)``, the accuracy of each network, None without pictures.
        ``confused``: records of ``class``, ``taken for`` by the distilled
        student, ``pictures``, ``of the class (%)``; most pictures first.
        ``data``: ``digest``, ``pictures`` by split, ``left_out``, ``notes``.
        ``settings``; ``times`` in s; ``trials``; ``versions``.

    Raises:
        ValueError: If probabilities are not those of the test split.
    """
    folder, labels = findings.folder, findings.gt_labels
    expected = len(labels), len(folder.classes)
    for one in findings.networks:
        if one.probabilities.shape != expected or not len(labels):
            raise ValueError(
                f'probabilities of {one.name}: expected test pictures and '
                f'classes {expected}, not 0, got '
                f'{tuple(one.probabilities.shape)}')
    hits = {one.name: right(one, labels) for one in findings.networks}
    *others, distilled = hits
    sizes = {split: Counter(label for _, label in pictures)
             for split, pictures in folder.splits.items()}
    found = dict(
        networks={
            one.name: dict(
                what=one.what, **_share(hits[one.name]), **one.cost._asdict())
            for one in findings.networks
        },
        comparisons={name: _comparison(hits[distilled], hits[name])
                     for name in others},
        classes=[{
            'class': name,
            **{split: size[label] for split, size in sizes.items()},
            **{f'{one} (%)': _percent(hit[labels == label])
               for one, hit in hits.items()}
        } for label, name in enumerate(folder.classes)],
        confused=_confused(findings, labels),
        data=dict(
            digest=folder.digest,
            pictures={split: len(one) for split, one in folder.splits.items()},
            left_out=len(folder.left_out), notes=folder.notes),
        settings=findings.settings, times=findings.times,
        trials=None if findings.trials is None else json.loads(
            findings.trials.to_json(orient='records')),
        versions=_versions())
    return json.loads(json.dumps(found, default=str))


def _confused(findings: Findings, labels: Tensor) -> list[dict[str, Any]]:
    table, names = confusion(findings.networks[-1], labels), (
        findings.folder.classes)
    wrong = table.clone().fill_diagonal_(0)
    return sorted(({
        'class': names[label], 'taken for': names[taken],
        'pictures': int(table[label, taken]),
        'of the class (%)': 100 * int(table[label, taken]) / int(
            table[label].sum())
    } for label, taken in wrong.nonzero().tolist()),
                  key=lambda pair: -pair['pictures'])


def _versions() -> dict[str, str]:
    """Of what is loaded, and the system."""
    return {
        'wsld_plugin': __version__,
        'Python': platform.python_version(),
        **{name: str(sys.modules[name].__version__)
           for name in _LIBRARIES if name in sys.modules},
        'system': platform.platform()
    }


def _percent(hits: Tensor) -> float | None:
    return 100 * int(hits.sum()) / len(hits) if len(hits) else None


def _share(hits: Tensor) -> dict[str, Any]:
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(
        method='wilson')
    return dict(pictures=len(hits), correct=int(hits.sum()),
                accuracy=_percent(hits), interval=[100 * x for x in interval])


def _comparison(here: Tensor, there: Tensor) -> dict[str, Any]:
    first, second = int((here & ~there).sum()), int((there & ~here).sum())
    return dict(
        points=100 * (first - second) / len(here),
        only_here=first, only_there=second,
        p_value=float(binomtest(first, first + second).pvalue)
        if first + second else 1.0)
