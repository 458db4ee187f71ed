"""Pixels of segmentation networks as samples, and maps of their weights."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..functional import regularization_samples, wsld_weight
from .drawing import png
from .sample_drawings import picture

# Pixels of each picture that are samples, along its height and its width.
GRID = 32
# Pictures whose weights are drawn.
_MAPS = 6


def is_dense(network: Any) -> bool:
    """Whether a network is one of mmseg's, which label pixels."""
    return hasattr(network, 'decode_head')


def grid_pixels(networks: Sequence[Any], outputs: Sequence[Tensor],
                data_samples: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
    """Logits and labels at the same even grid over each of N pictures.

    From logits ``(N, C, h, w)`` of networks of mmseg and samples with
    ``gt_sem_seg``; each ``(N * GRID**2, C)``, picture by picture.
    """
    rows: list[list[Tensor]] = [[] for _ in (*networks, None)]
    for index, sample in enumerate(data_samples):
        labels = sample.gt_sem_seg.data.cpu().squeeze(0)
        down, across = (torch.linspace(0, size - 1, GRID).round().long()
                        for size in labels.shape)
        for part, network, output in zip(rows, networks, outputs):
            found = _at_size(output[index:index + 1].cpu(), labels.shape,
                             network.align_corners)[0]
            part.append(found[:, down][:, :, across].flatten(1).T)
        rows[-1].append(labels[down][:, across].flatten())
    *logits, labels = map(torch.cat, rows)
    return logits, labels


@torch.no_grad()
def draw_maps(student: Any, teacher: Any, loader: Any,
              settings: Any) -> bytes:
    """Draw some pictures beside the weights of their pixels, as PNG."""
    from matplotlib.figure import Figure
    dataset, preprocess = loader.dataset, student.data_preprocessor
    chosen = np.linspace(0, len(dataset) - 1, min(_MAPS, len(dataset)))
    figure = Figure(figsize=(12, 2.8 * len(chosen)), layout='constrained')
    grid = figure.subplots(len(chosen), 3, squeeze=False)
    for axes, index in zip(grid, chosen.round().astype(int)):
        data = preprocess(loader.collate_fn([dataset[index]]), False)
        labels = data['data_samples'][0].gt_sem_seg.data.cpu().long()
        ignored = labels == settings.ignore_index
        s, t = (_at_size(one(data['inputs'], mode='tensor').cpu(),
                         labels.shape[1:], one.align_corners)
                for one in (student, teacher))
        known = labels.masked_fill(ignored, 0)
        maps = [wsld_weight(s, t, known, settings.eps),
                regularization_samples(s, t, known, tau=settings.tau).float()]
        axes[0].imshow(picture(dataset[index]['inputs'],
                               preprocess._channel_conversion))
        for one, values, title in zip(axes[1:], maps, (
                'weight', 'regularization pixels')):
            drawn = one.imshow(values.masked_fill(ignored, torch.nan)[0],
                               vmin=0, vmax=1, interpolation='nearest')
            one.set_title(title, fontsize=8, loc='left')
            figure.colorbar(drawn, ax=one)
        for one in axes:
            one.set_axis_off()
    return png(figure)


def _at_size(logits: Tensor, size: Sequence[int],
             align_corners: bool) -> Tensor:
    """Logits ``(N, C, h, w)`` at another size, as mmseg resizes them."""
    return interpolate(logits, tuple(size), mode='bilinear',
                       align_corners=align_corners)
