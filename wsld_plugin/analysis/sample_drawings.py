"""Drawings of weights, regularization samples and single samples."""
from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .drawing import plain, png

# What the weight is where student and teacher are equally good.
_EQUAL = 1 - np.exp(-1)
# Characters of a line above a picture.
_LINE = 32


def draw_shares(checkpoints: pd.DataFrame, classes: pd.DataFrame) -> bytes:
    """Draw the share of regularization samples, as PNG.

    Args:
        checkpoints: A row for each checkpoint, on the left.
        classes: A row for each class of the last one, on the right.
    """
    from matplotlib.figure import Figure
    figure = Figure(
        figsize=(10, max(3.4, 1.2 + 0.22 * len(classes))),
        layout='constrained')
    left, right = figure.subplots(1, 2)
    shares = checkpoints['share (%)']
    names = [plain(name) for name in checkpoints['checkpoint']]
    left.plot(range(len(names)), shares, marker='o')
    left.set_xticks(range(len(names)), names, rotation=45)
    left.set(
        ylabel='regularization samples (%)', ylim=(0, 1.1 * max(shares) or 1))
    right.barh(range(len(classes)), classes['share (%)'])
    right.set_yticks(range(len(classes)), [*map(plain, classes['class'])])
    right.invert_yaxis()
    right.set(
        xlabel='regularization samples (%)', title=f'by class, {names[-1]}')
    left.grid(alpha=0.3, axis='y')
    right.grid(alpha=0.3, axis='x')
    return png(figure)


def draw_weights(samples: pd.DataFrame) -> bytes:
    """Draw a histogram of the weights at each checkpoint, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout='constrained')
    axes = figure.subplots()
    groups = samples.groupby('checkpoint', observed=True)['weight']
    shades = colormaps['viridis'](np.linspace(0, 0.9, len(groups)))
    for (name, weights), shade in zip(groups, shades):
        axes.hist(weights, bins=40, range=(0, 1), histtype='step',
                  linewidth=1.5, color=shade, label=plain(name))
    axes.axvline(_EQUAL, color='0.4', linestyle='--',
                 label='equal to the teacher')
    axes.set(xlabel='weight', ylabel='samples', yscale='log')
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
    return png(figure)


def draw_samples(samples: pd.DataFrame, dataset: Any, to_rgb: bool) -> bytes:
    """Draw pictures with what both networks say about them, as PNG.

    Args:
        samples: Rows of :func:`wsld_plugin.analysis.inspect_batch`.
        dataset: Has their pictures at ``sample``.
        to_rgb: Whether the channels are blue, green, red.
    """
    from matplotlib.figure import Figure
    lines = max(1, -(-len(samples) // 6))
    figure = Figure(figsize=(12, 3.3 * lines), layout='constrained')
    grid = figure.subplots(lines, 6, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, sample in zip(grid.flat, samples.to_dict('records')):
        axes.imshow(
            picture(dataset[sample['sample']]['inputs'], to_rgb),
            interpolation='nearest')
        text = [
            f'weight {sample["weight"]:.3g}, label {sample["class"]}',
            'teacher:', *sample['teacher_top'].split(' > '), 'student:',
            *sample['student_top'].split(' > ')
        ]
        axes.set_title(
            '\n'.join(plain(line[:_LINE]) for line in text),
            fontsize=8,
            loc='left')
    return png(figure)


def picture(inputs: Tensor, to_rgb: bool) -> np.ndarray:
    """A pipeline's ``(3 or 1, H, W)`` in [0, 255] as uint8 ``(H, W, 3)``."""
    if to_rgb:
        inputs = inputs.flip(0)
    inputs = inputs.expand(3, -1, -1).clamp(0, 255).to(torch.uint8)
    return inputs.permute(1, 2, 0).numpy()
