"""Drawings of single samples."""
from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .drawing import plain, png

# Characters of a line above a picture.
_LINE = 32


def draw_samples(samples: pd.DataFrame, dataset: Any, to_rgb: bool) -> bytes:
    """Draw pictures with what both networks say about them, as PNG.

    ``samples`` are rows of :func:`wsld_plugin.analysis.inspect_batch`, whose
    pictures the data set has; ``to_rgb`` if they are blue, green, red.
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
