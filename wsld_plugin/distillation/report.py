"""The page that tells what a distillation did and found."""
from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from markupsafe import Markup
from mmengine.config import Config

from ..analysis import read_history
from ..analysis.report import html_page
from .findings import (
    Findings,
    Judged,
    confused,
    counts,
    labels,
    metrics,
    right,
)
from .pictures import STYLE, curves, elements, gallery, matrix

__all__ = ['Findings', 'Judged', 'metrics', 'report_page']

# What is shown of many.
_CONTACTS, _LEFT_OUT, _PAIRS, _STRIKING, _MATRIX, _TOP = 20, 20, 15, 8, 30, 3
# Below this share of chance, in %, a difference is told from chance.
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
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

classes = {classes!r}
picture = ImageOps.exif_transpose(Image.open({picture!r})).convert('RGB')
short = min(picture.size)
picture = picture.resize(
    [{edge} * side // short for side in picture.size], Image.BILINEAR)
left, top = [round((side - {size}) / 2) for side in picture.size]
picture = picture.crop((left, top, left + {size}, top + {size}))
pixels = np.asarray(picture)[None, :, :, ::-1].transpose(0, 3, 1, 2)
session = onnxruntime.InferenceSession({onnx!r})
logits = session.run(None, {{'images': pixels}})[0][0]
chances = np.exp(logits - logits.max())
best = chances.argmax()
print(classes[best], chances[best] / chances.sum())
'''


def report_page(findings: Findings) -> str:
    """One HTML page, which refers to no other file.

    Raises:
        ValueError: If a network's probabilities are not of the test split.
    """
    found = metrics(findings)
    student, teacher = findings.networks[-1], findings.networks[0]
    return html_page(
        'What the distillation found',
        [('', _result(found, student, teacher)),
         ('Size and speed', _costs(findings)),
         ('Using the student', _usage(findings)),
         ('Classes', _classes(findings, found)),
         ('Right and wrong pictures', _striking(findings)),
         ('Training', _training(findings)),
         ('Pictures', _pictures(findings, found)),
         ('Settings', _settings(findings, found))],
        STYLE)


def _result(found: dict[str, Any], student: Judged,
            teacher: Judged) -> list[Any]:
    number = found['test_pictures']
    cards = [
        elements('div', [
            name,
            elements('b', [f'{one["accuracy"]:.1f}%']),
            '{:.1f} to {:.1f}%'.format(*one['interval']),
            Markup('<br>'),
            elements('small', [one['what']])
        ], 'card') for name, one in found['networks'].items()
    ]
    said = [
        _difference(student.name, name, one)
        for name, one in found['comparisons'].items()
    ]
    if len(found['networks']) < 3:
        said.append(
            'Whether it would have learned as much from the labels alone was '
            'not measured: the argument baseline (--baseline) trains the '
            'same network without a teacher to compare with.')
    return [
        f'A network, the student ({student.what}), learned to tell '
        f'{len(found["classes"])} classes of pictures from their labels and '
        f'from the answers of a trained one, the teacher ({teacher.what}). '
        'This is called distillation.',
        f'Pictures of the test split named rightly, of {number}; below each '
        'figure its 95% interval (Wilson), which says how far it may be off '
        'because there are no more pictures. The test split chose nothing: '
        'it was used for this page only.',
        elements('div', cards, 'cards'), *said,
        'All figures are of one training of each network. Another seed would '
        'give somewhat different ones, about which the intervals say nothing.'
    ]


def _difference(first: str, second: str, one: dict[str, Any]) -> str:
    """A difference in words, and whether it may be chance."""
    points, cases = one['points'], round(100 * one['p_value'], 1)
    if not points:
        return (f'{first} and {second} are right equally often; each alone '
                f'is right for {one["only_here"]} pictures.').capitalize()
    chance = (f'in {cases:.1f} of 100 cases' if cases >= .1 else
              'in fewer than 1 of 1000 cases')
    said = ('this can be told from chance' if cases < _CHANCE else
            'this cannot be told from chance')
    return (
        f'{first} is {"better" if points > 0 else "worse"} than {second} by '
        f'{abs(points):.1f} points: it alone is right for '
        f'{one["only_here"]} pictures, {second} alone for '
        f'{one["only_there"]}. Between equally good networks a difference '
        f'this large or larger would come by chance {chance}; {said} '
        '(exact McNemar test).').capitalize()


def _costs(findings: Findings) -> list[Any]:
    rows = [{
        'network': network.name,
        'parameters': _millions(network.cost.parameters),
        'multiply-adds': _millions(network.cost.multiply_adds),
        'latency (ms)': f'{network.cost.latency_ms:.2f}',
        'its spread (ms)': f'{network.cost.spread:.2f}',
        'weights (MB)': f'{network.cost.size_mb:.2f}',
        'measured on': network.cost.device
    } for network in findings.networks]
    files = [('student', findings.student), ('student as ONNX', findings.onnx)]
    return [
        pd.DataFrame(rows),
        'Multiply-adds (of convolutions, linear layers and attention) and '
        'latency are for one picture at a time. The latency is the median of '
        'repeated runs here, the spread the width of their middle half.',
        pd.DataFrame([{
            'file': name,
            'size (MB)': f'{path.stat().st_size / 1e6:.2f}',
            'path': str(path)
        } for name, path in files if path is not None])
    ]


def _usage(findings: Findings) -> list[Any]:
    """Lines that run as they are."""
    split = findings.folder.splits['test']
    picture = str((findings.folder.root / split[0][0]).absolute())
    parts: list[Any] = [
        'With mmpretrain, here for one picture of the test split:',
        _code(_MMPRETRAIN.format(
            student=str(findings.student.absolute()), picture=picture))
    ]
    if findings.onnx is not None:
        steps = {
            step['type']: step for step in Config.fromfile(
                findings.config, import_custom_modules=False
            ).test_dataloader.dataset.pipeline
        }
        parts += [
            'With onnxruntime alone; the file normalises the pixels itself:',
            _code(_ONNX.format(
                classes=list(findings.folder.classes),
                picture=picture,
                edge=steps['ResizeEdge']['scale'],
                size=steps['CenterCrop']['crop_size'],
                onnx=str(findings.onnx.absolute())))
        ]
    return parts


def _classes(findings: Findings, found: dict[str, Any]) -> list[Any]:
    names, student = findings.folder.classes, findings.networks[-1]
    table = counts(student, labels(findings))
    rows = [{
        'class': name,
        **one['pictures'],
        **{
            f'{network} (%)': '-' if share is None else f'{share:.1f}'
            for network, share in one['accuracy'].items()
        }
    } for name, one in sorted(
        found['classes'].items(),
        key=lambda item: item[1]['accuracy'][student.name] or 0.)]
    pairs = [{
        'class': names[label],
        'taken for': names[taken],
        'pictures': count,
        'of the class (%)': f'{100 * count / int(table[label].sum()):.1f}'
    } for label, taken, count in confused(findings)[:_PAIRS]]
    parts: list[Any] = [
        'Pictures by split, and how many of those of the test split each '
        f'network names rightly; the lowest of the {student.name} first.',
        pd.DataFrame(rows),
        _heading(f'What the {student.name} takes for something else'),
        pd.DataFrame(pairs) if pairs else 'Nothing on the test pictures.'
    ]
    if len(names) <= _MATRIX:
        parts += [
            'Test pictures by true class (rows) and by the class that the '
            f'{student.name} names (columns, by number).',
            matrix(table, names)
        ]
    return parts


def _striking(findings: Findings) -> list[Any]:
    student, teacher = findings.networks[-1], findings.networks[0]
    gt_labels = labels(findings)
    hits, known = right(student, gt_labels), right(teacher, gt_labels)
    sure, taught = [
        network.probabilities.nan_to_num(0).gather(
            1, gt_labels[:, None]).flatten() for network in (student, teacher)
    ]
    groups = [
        ('Most wrong: the label is least likely to the student. Look here '
         'for wrong labels, too.', ~hits, sure),
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
            _heading(f'{title} ({len(shown)} of {int(chosen.sum())})'),
            gallery(_captions(findings, shown)) if shown else 'None.'
        ]
    return parts


def _captions(findings: Findings,
              shown: Sequence[int]) -> Iterable[tuple[Path, list[object]]]:
    classes, student = findings.folder.classes, findings.networks[-1]
    for index in shown:
        path, label = findings.folder.splits['test'][index]
        lines: list[object] = [classes[label]]
        for network in (student, findings.networks[0]):
            best = network.probabilities[index].topk(min(_TOP, len(classes)))
            lines.append(elements('i', [f'{network.name}:']) + ', '.join(
                f'{classes[label]} {share:.0%}' for share, label in zip(
                    best.values.tolist(), best.indices.tolist())))
        yield findings.folder.root / path, lines


def _training(findings: Findings) -> list[Any]:
    histories = {
        name: read_history(path) for name, path in findings.work_dirs.items()
    }
    parts: list[Any] = [curves(histories)] if any(
        history.steps or history.validations
        for history in histories.values()) else []
    if findings.trials is not None:
        parts += [
            'Temperature (tau) and weight of the soft labels (alpha) were '
            'chosen by short trainings, on the validation pictures:',
            findings.trials
        ]
    return [*parts, pd.DataFrame([{
        'stage': stage, 'time': _duration(seconds)
    } for stage, seconds in findings.times.items()])]


def _pictures(findings: Findings, found: dict[str, Any]) -> list[Any]:
    folder, data = findings.folder, found['data']
    several = len(folder.classes)
    step = -(-several // _CONTACTS)
    first = {label: path for path, label in reversed(folder.splits['train'])}
    contacts = [(folder.root / first[label], [folder.classes[label]])
                for label in range(0, several, step) if label in first]
    parts: list[Any] = [
        f'{folder.root}: {several} classes; ' + ', '.join(
            f'{count} pictures in {split}'
            for split, count in data['pictures'].items()) +
        f'. Fingerprint of all of them and the split: {folder.digest}.',
        *folder.notes,
        f'A training picture of each of {len(contacts)} classes:',
        gallery(contacts),
        _heading(f'Left out: {len(folder.left_out)}')
    ]
    if folder.left_out:
        parts.append(pd.DataFrame(
            folder.left_out[:_LEFT_OUT], columns=['file', 'reason']))
    if len(folder.left_out) > _LEFT_OUT:
        parts.append(f'And {len(folder.left_out) - _LEFT_OUT} more.')
    return parts


def _settings(findings: Findings, found: dict[str, Any]) -> list[Any]:
    return [
        *(pd.DataFrame({what: [*values], 'value': [*map(str, values.values())]})
          for what, values in (('setting', findings.settings),
                               ('version of', found['versions']))),
        'The distillation alone, with all its settings to edit, in a checkout '
        'of wsld_plugin:',
        _code(f'python tools/train.py {shlex.quote(str(findings.config))}')
    ]


def _heading(text: str) -> Markup:
    return Markup('<h3>{}</h3>').format(text)


def _code(lines: str) -> Markup:
    return Markup('<pre tabindex="0"><code>{}</code></pre>').format(lines)


def _millions(count: int | None) -> str:
    return 'not measured' if count is None else f'{count / 1e6:,.2f} M'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f'{hours} h {minutes} min' if hours else
            f'{minutes} min {rest} s' if minutes else f'{seconds:.1f} s')
