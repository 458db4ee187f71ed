"""What the report of a distillation shows besides text and tables."""
from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import cv2
import mmcv
from markupsafe import Markup
from torch import Tensor

from ..analysis.drawing import plain, plot_runs, png, whole_epochs
from ..analysis.history import History

# Longer side of a picture in pixels, and up to which all of it is kept.
_SIDE, _SMALL = 160, 64
# Okabe and Ito's colours, which the colour-blind can tell.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')

STYLE = '''
.cards, .gallery { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.card { border-left: .3rem solid #0072B2; padding: .2rem .8rem; }
.card b { display: block; font-size: 2rem; line-height: 1.3; }
.card small, figcaption { color: #555; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; height: 9rem; object-fit: contain;
  background: #f4f4f4; }
figure img.small { image-rendering: pixelated; }
figcaption { font-size: .8rem; line-height: 1.35; }
figcaption b, figcaption i { display: block; color: #222; }
.curves { display: grid; gap: 1rem; grid-template-columns:
  repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto;
  overflow-wrap: normal; font-size: .85rem; }
.matrix td, .matrix th { border: 0; padding: 0 .3rem; text-align: right;
  font-size: .8rem; min-width: 1.2rem; white-space: nowrap; }
.matrix td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.matrix th:first-child { text-align: left; max-width: 12rem;
  overflow: hidden; text-overflow: ellipsis; }
@media print { pre { white-space: pre-wrap; } }
'''


def elements(tag: str, contents: Iterable[object], kind: str = '') -> Markup:
    """An element with the contents one after the other, text as it is."""
    return Markup('<{0} class="{1}">{2}</{0}>').format(
        tag, kind, Markup('').join(contents))


def gallery(pictures: Iterable[tuple[Path, Sequence[object]]]) -> Markup:
    """A grid of pictures.

    Args:
        pictures: File and lines below of each; the first line is also told
            where the picture is not seen.
    """
    return elements('div', [
        Markup('<figure>{}<figcaption>{}</figcaption></figure>').format(
            _picture(path, str(lines[0])),
            Markup('<br>').join([elements('b', lines[:1]), *lines[1:]]))
        for path, lines in pictures
    ], 'gallery')


def _picture(path: Path, text: str) -> Markup:
    try:
        # As the networks get it.
        picture = mmcv.imread(str(path))
    except OSError:
        picture = None
    if picture is None:
        return Markup('<em>cannot be read any more</em>')
    if max(picture.shape[:2]) > _SIDE:
        picture = mmcv.imrescale(
            picture, (_SIDE, _SIDE), interpolation='area')
    small = max(picture.shape[:2]) <= _SMALL
    kind = 'png' if small else 'jpeg'
    data = cv2.imencode(f'.{kind}', picture)[1].tobytes()
    return Markup(
        '<img class="{}" loading="lazy" alt="{}" '
        'src="data:image/{};base64,{}">').format(
            'small' if small else '', text, kind,
            base64.b64encode(data).decode())


def matrix(counts: Tensor, classes: Sequence[str]) -> Markup:
    """A table of counts, darker where more of a row are.

    Args:
        counts: ``(C, C)`` integers, of true classes in rows.
        classes: Their names.
    """
    numbers = range(len(classes))
    rows = [elements('tr', [
        elements('th', ['true class']), *(
            Markup('<th title="{}">{}</th>').format(name, number)
            for number, name in zip(numbers, classes))])]
    for number, (name, row) in enumerate(zip(classes, counts.tolist())):
        cells = [Markup('<th title="{0}">{1} {0}</th>').format(name, number)]
        for count in row:
            share = count / (sum(row) or 1)
            cells.append(Markup(
                '<td style="background: rgba(0, 60, 120, {:.2f}); '
                'color: {}">{}</td>').format(
                    share, '#fff' if share > .45 else '#222', count or ''))
        rows.append(elements('tr', cells))
    return Markup('<div class="scroll" tabindex="0">{}</div>').format(
        elements('table', rows, 'matrix'))


def curves(histories: Mapping[str, History]) -> Markup:
    """Two drawings, of accuracy and of cross-entropy by epoch."""
    from matplotlib.figure import Figure
    drawings = []
    for what, read in (
        ('validation accuracy (%)',
         lambda history: history.validation('accuracy/top1')),
        ('training cross-entropy (nats)', History.cross_entropies)):
        figure = Figure(figsize=(5, 3.6), layout='constrained')
        axes = figure.subplots()
        for (name, history), color in zip(histories.items(), cycle(_COLORS)):
            if curve := read(history):
                plot_runs(axes, [curve], color, plain(name))
        axes.set_ylabel(what)
        whole_epochs(axes)
        if axes.has_data():
            axes.legend(fontsize=8)
        drawings.append(Markup(
            '<img alt="Curves of {} by epoch" '
            'src="data:image/png;base64,{}">').format(
                what, base64.b64encode(png(figure)).decode()))
    return elements('div', drawings, 'curves')
