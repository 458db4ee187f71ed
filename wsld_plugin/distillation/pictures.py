"""What the report of a distillation shows besides text and tables."""
from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import cv2
import mmcv
import pandas as pd
from markupsafe import Markup, escape
from torch import Tensor

from ..analysis.drawing import plot_runs, png, whole_epochs
from ..analysis.history import History

# Longer side of a picture in pixels, and up to which it is enlarged.
_SIDE, _SMALL = 160, 64
# Okabe and Ito's colours, which the colour-blind can tell.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')

STYLE = '''
.cards, .gallery, .curves { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.curves { grid-template-columns:
  repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.cards div { border-left: .3rem solid #0072B2; padding: .2rem .8rem; }
.cards b { display: block; font-size: 2rem; line-height: 1.3; }
figure { margin: 0; break-inside: avoid; font-size: .8rem; }
figure img { width: 100%; height: 9rem; object-fit: contain;
  background: #f4f4f4; }
figure .png { image-rendering: pixelated; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto;
  overflow-wrap: normal; font-size: .85rem; }
td { max-width: 24rem; overflow-wrap: anywhere; }
.matrix th, .matrix td { border: 0; padding: 0 .3rem; font-size: .8rem;
  text-align: right; print-color-adjust: exact; }
.matrix th:first-child { text-align: left; max-width: 12rem;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
@media print { pre { white-space: pre-wrap; } }
'''


def element(tag: str, *contents: object) -> Markup:
    """``<tag>`` around the contents, whose text is shown as it is.

    The tag may have attributes; markup in the contents stays markup.
    """
    return Markup('<{}>{}</{}>').format(
        Markup(tag), Markup('').join(map(escape, contents)), tag.split()[0])


def gallery(pictures: Iterable[tuple[Path, Sequence[object]]]) -> Markup:
    """A grid of picture files with lines below, of which the first is bold."""
    return element('div class="gallery"', *(
        element(
            'figure', _picture(path, str(lines[0])),
            element('figcaption', element('b', lines[0]),
                    *(element('div', line) for line in lines[1:])))
        for path, lines in pictures))


def matrix(counts: Tensor, classes: Sequence[str]) -> Markup:
    """Counts ``(C, C)`` with true classes in rows, darker where more are."""
    names = [f'{number} {name}' for number, name in enumerate(classes)]
    style = pd.DataFrame(counts.numpy(), names).style
    style = style.background_gradient('Blues', axis=1).format(
        lambda count: count or '').format_index(escape='html')
    style.set_uuid('m').set_table_attributes('class="matrix"')
    return element('div class="scroll" tabindex="0"', Markup(style.to_html()))


def curves(histories: Mapping[str, History]) -> Markup:
    """Two drawings, of accuracy and of cross-entropy by epoch."""
    from matplotlib.figure import Figure
    drawings = []
    for what, read in (('validation accuracy (%)', lambda history: history.
                        validation('accuracy/top1')),
                       ('training cross-entropy (nats)',
                        History.cross_entropies)):
        figure = Figure(figsize=(5, 3.6), layout='constrained')
        axes = figure.subplots()
        for (name, history), color in zip(histories.items(), cycle(_COLORS)):
            if curve := read(history):
                plot_runs(axes, [curve], color, name)
        axes.set_ylabel(what)
        whole_epochs(axes)
        if axes.has_data():
            axes.legend(fontsize=8)
        drawings.append(_image('png', png(figure), f'{what} by epoch'))
    return element('div class="curves"', *drawings)


def _picture(path: Path, text: str) -> Markup:
    try:
        # As the networks get it.
        picture = mmcv.imread(str(path))
    except OSError:
        picture = None
    if picture is None:
        return element('em', 'It cannot be read any more.')
    side = max(picture.shape[:2])
    if side > _SIDE:
        picture = mmcv.imrescale(picture, _SIDE / side, interpolation='area')
    kind = 'png' if side <= _SMALL else 'jpeg'
    return _image(kind, cv2.imencode(f'.{kind}', picture)[1].tobytes(), text)


def _image(kind: str, data: bytes, text: str) -> Markup:
    return Markup('<img class="{0}" alt="{1}" src="data:image/{0};base64,{2}">'
                  ).format(kind, text, base64.b64encode(data).decode())
