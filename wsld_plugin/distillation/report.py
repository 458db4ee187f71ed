"""The page that tells what a distillation did and found."""
from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from markupsafe import Markup
from mmengine.config import Config
from torch import Tensor

from ..analysis import read_history
from ..analysis.report import html_page
from .findings import Findings, confusion, metrics, right
from .pictures import STYLE, curves, element, gallery, matrix

# What is shown of many.
_CONTACTS, _LEFT_OUT, _PAIRS, _STRIKING, _MATRIX, _TOP = 20, 20, 15, 8, 30, 3
# Below this many cases of 100, a difference is told from chance.
_CHANCE = 5.0
_MMPRETRAIN = '''\
import wsld_plugin
from mmengine import Config
from mmpretrain import ImageClassificationInferencer
from wsld_plugin.checkpoints import read_checkpoint

student = {student!r}
config = read_checkpoint(student)['meta']['cfg']
classify = ImageClassificationInferencer(
    Config.fromstring(config, '.py'), pretrained=student)
found = classify({picture!r})[0]
print(found['pred_class'], found['pred_score'])
'''
_ONNX = '''\
import cv2
import numpy as np
import onnxruntime
from PIL import Image

classes = {classes!r}
picture = Image.fromarray(cv2.imread({picture!r}))  # blue first
short = min(picture.size)
picture = picture.resize(
    [{edge} * side // short for side in picture.size], Image.BILINEAR)
left, top = [round((side - {size}) / 2) for side in picture.size]
picture = picture.crop((left, top, left + {size}, top + {size}))
pixels = np.asarray(picture)[None].transpose(0, 3, 1, 2)
session = onnxruntime.InferenceSession({onnx!r})
logits = session.run(None, {{'images': pixels}})[0][0]
chances = np.exp(logits - logits.max())
best = chances.argmax()
print(classes[best], chances[best] / chances.sum())
'''


def report_page(findings: Findings) -> str:
    """One HTML page, which refers to no other file."""
    found = metrics(findings)
    return html_page('What the distillation found', [
        ('', _result(found)),
        ('Size and speed', _costs(findings, found)),
        ('Using the student', _usage(findings)),
        ('Classes', _classes(findings, found)),
        ('Right and wrong pictures', _striking(findings)),
        ('Training', _training(findings)),
        ('Pictures', _pictures(findings, found)),
        ('Settings', _settings(findings, found)),
    ], STYLE)


def _result(found: dict[str, Any]) -> list[Any]:
    networks, comparisons = found['networks'], found['comparisons']
    teacher, *_, student = networks
    judged = networks[student]
    cards = [
        element('div', name, element('b', f'{one["accuracy"]:.1f}%'),
                '{:.1f} to {:.1f}%'.format(*one['interval']))
        for name, one in networks.items()
    ]
    return [
        f'A student ({judged["what"]}) learned to name the '
        f'{len(found["classes"])} classes of pictures from their labels and '
        f'from the answers of a teacher ({networks[teacher]["what"]}), which '
        'had learned them before. This is called distillation.',
        f'Named rightly, of {judged["pictures"]} test pictures:',
        element('div class="cards"', *cards),
        'Below each share stands its 95% interval (Wilson): in 19 of 20 cases '
        'such an interval holds the share among all pictures of the same '
        'kind. Nothing was chosen on the test pictures. All figures are of '
        'one training of each network; another seed would give somewhat '
        'different ones, of which the intervals know nothing.',
        *(_difference(student, name, one)
          for name, one in comparisons.items()),
        *([] if len(comparisons) > 1 else [
            'Whether the student would have learned as much from the labels '
            'alone was not measured; baseline=True (--baseline) does.'
        ])
    ]


def _difference(first: str, second: str, one: dict[str, Any]) -> str:
    """A difference in words, and whether it may be chance."""
    points, cases = one['points'], round(100 * one['p_value'], 1)
    better = (f'{abs(points):.1f} points better than' if points > 0 else
              f'{abs(points):.1f} points worse than' if points else
              'exactly as good as')
    often = (f'{cases:.1f} of 100 cases' if cases >= 0.1 else
             'fewer than 1 of 1000 cases')
    said = (f'On these pictures the {first} is {better} the {second}: '
            f'{one["only_here"]} were named rightly by the {first} only, '
            f'{one["only_there"]} by the {second} only.')
    if points:
        said += (f' Were both equally good, a difference this large or larger '
                 f'would come by chance in {often} (exact McNemar test); this '
                 f'one can{"" if cases < _CHANCE else "not"} be told from '
                 'chance.')
    return said


def _costs(findings: Findings, found: dict[str, Any]) -> list[Any]:
    rows = [{
        'network': name,
        'parameters (M)': one['parameters'] / 1e6,
        'multiply-adds (M)': 'not measured'
        if one['multiply_adds'] is None else one['multiply_adds'] / 1e6,
        'latency (ms)': one['latency_ms'], 'spread (ms)': one['spread'],
        'weights (MB)': one['size_mb'], 'measured on': one['device']
    } for name, one in found['networks'].items()]
    return [
        pd.DataFrame(rows),
        'Multiply-adds (of convolutions, linear layers and attention) and '
        'latency are for one picture at a time. The latency is the median of '
        'repeated runs, the spread the width of their middle half.', *(
            f'{path.name}: {path.stat().st_size / 1e6:.1f} MB'
            for path in (findings.student, findings.onnx) if path)
    ]


def _usage(findings: Findings) -> list[Any]:
    """Lines that run as they are."""
    folder = findings.folder
    names = dict(
        classes=list(folder.classes),
        picture=str(folder.root.absolute() / folder.splits['test'][0][0]),
        student=str(findings.student.absolute()))
    parts: list[Any] = [
        'With mmpretrain, here for a picture of the test split:',
        _code(_MMPRETRAIN.format(**names))
    ]
    if findings.onnx is not None:
        cfg = Config.fromfile(findings.config, import_custom_modules=False)
        steps = {step['type']: step
                 for step in cfg.test_dataloader.dataset.pipeline}
        names.update(
            onnx=str(findings.onnx.absolute()),
            edge=steps['ResizeEdge']['scale'],
            size=steps['CenterCrop']['crop_size'])
        parts += [
            'With onnxruntime, without torch; mean and deviation of the '
            'pixels are in the file:',
            _code(_ONNX.format(**names))
        ]
    return parts


def _classes(findings: Findings, found: dict[str, Any]) -> list[Any]:
    names, student = findings.folder.classes, findings.networks[-1]
    table, pairs = pd.DataFrame(found['classes']), found['confused']
    parts: list[Any] = [
        'Pictures of each class by split, and the share of the test pictures '
        f'that each network names rightly; the lowest of the {student.name} '
        'first.',
        table.sort_values(f'{student.name} (%)', kind='stable'),
        element('h3', f'What the {student.name} takes for something else'),
        pd.DataFrame(pairs[:_PAIRS]) if pairs else 'Nothing.'
    ]
    if len(names) <= _MATRIX:
        parts += [
            'Test pictures by their class (rows) and by the class that the '
            f'{student.name} names (columns, by number):',
            matrix(confusion(student, findings.gt_labels), names)
        ]
    return parts


def _striking(findings: Findings) -> list[Any]:
    student, teacher = findings.networks[-1], findings.networks[0]
    labels = findings.gt_labels
    hits, known = right(student, labels), right(teacher, labels)
    sure, taught = (
        network.probabilities.nan_to_num(0).gather(1, labels[:, None])[:, 0]
        for network in (student, teacher))
    groups = [
        ('Most wrong (look here for wrong labels, too)', ~hits, sure),
        ('Teacher right, student wrong', known & ~hits, sure - taught),
        ('Student right, teacher wrong', hits & ~known, taught - sure),
        ('Right and surest', hits, -sure),
    ]
    parts: list[Any] = [
        f'Test pictures with their label, and the {_TOP} likeliest classes of '
        'both networks.'
    ]
    for title, chosen, order in groups:
        ranked = order.masked_fill(~chosen, torch.inf).argsort(stable=True)
        shown = ranked[:min(_STRIKING, int(chosen.sum()))].tolist()
        parts += [
            element('h3', f'{title}: {len(shown)} of {int(chosen.sum())}'),
            gallery(_captions(findings, shown)) if shown else 'None.'
        ]
    return parts


def _captions(findings: Findings, shown: Sequence[int]
              ) -> Iterator[tuple[Path, list[object]]]:
    folder = findings.folder
    for index in shown:
        path, label = folder.splits['test'][index]
        lines: list[object] = [folder.classes[label]]
        for network in (findings.networks[-1], findings.networks[0]):
            best = network.probabilities[index].topk(
                min(_TOP, len(folder.classes)))
            lines.append(element('em', f'{network.name}: ') + ', '.join(
                f'{folder.classes[label]} {share:.0%}'
                for share, label in zip(*map(Tensor.tolist, best))))
        yield folder.root / path, lines


def _training(findings: Findings) -> list[Any]:
    chosen = [] if findings.trials is None else [
        'Temperature (tau) and weight of the soft labels (alpha) were chosen '
        'by short trainings, on the validation pictures:', findings.trials
    ]
    return [
        curves({name: read_history(path)
                for name, path in findings.work_dirs.items()}), *chosen,
        'What the trainings took; the rest of the call comes on top, such as '
        "computing a teacher's answers for all epochs:",
        pd.DataFrame([(stage, f'{seconds / 60:.1f}')
                      for stage, seconds in findings.times.items()],
                     columns=['training', 'time (min)'])
    ]


def _pictures(findings: Findings, found: dict[str, Any]) -> list[Any]:
    folder, left_out = findings.folder, findings.folder.left_out
    step = -(-len(folder.classes) // _CONTACTS)
    first = {label: path for path, label in reversed(folder.splits['train'])}
    contacts = [(folder.root / first[label], [folder.classes[label]])
                for label in sorted(first)[::step]]
    counts = [f'{count} pictures in {split}'
              for split, count in found['data']['pictures'].items()]
    return [
        f'{folder.root} has {len(folder.classes)} classes, '
        f'{", ".join(counts)}. Their digest, with the splits, is '
        f'{folder.digest}.', *folder.notes,
        f'A training picture of each of {len(contacts)} classes:',
        gallery(contacts),
        element('h3', f'Left out: {len(left_out)}'), *([
            pd.DataFrame(left_out[:_LEFT_OUT], columns=['file', 'reason'])
        ] if left_out else []),
        *(['The others stand in left_out.csv.']
          if len(left_out) > _LEFT_OUT else [])
    ]


def _settings(findings: Findings, found: dict[str, Any]) -> list[Any]:
    return [
        *(pd.DataFrame({name: [*values], 'value': map(str, values.values())})
          for name, values in (('setting', findings.settings),
                               ('version of', found['versions']))),
        'To go on from here, edit the config, which has all settings of the '
        'distillation, and train in a checkout of wsld_plugin:',
        _code(f'python tools/train.py {shlex.quote(str(findings.config))}')
    ]


def _code(lines: str) -> Markup:
    return element('pre tabindex="0"', element('code', lines))
