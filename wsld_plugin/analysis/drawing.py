"""What several figures share."""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_runs(axes: Axes, curves: Sequence[Mapping[int, float]], color: str,
              label: str) -> None:
    """Draw values by epoch of several runs thin and their mean thick."""
    for curve in curves:
        epochs = sorted(curve)
        axes.plot(epochs, [curve[epoch] for epoch in epochs], color=color,
                  alpha=0.3, linewidth=1)
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    heights = np.array([[curve[epoch] for epoch in epochs]
                        for curve in curves])
    axes.plot(epochs, heights.mean(0), color=color, label=plain(label),
              marker='o' if len(epochs) == 1 else None)


def whole_epochs(axes: Axes) -> None:
    """Mark the horizontal axis at whole numbers only, and draw a grid."""
    from matplotlib.ticker import MaxNLocator
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is, rather than as a formula."""
    return text.replace('$', r'\$')


def png(figure: Figure) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()
