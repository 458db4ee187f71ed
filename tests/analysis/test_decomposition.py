"""Decomposing files of predictions."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsld_plugin.analysis import (
    bias_variance as module,
)
from wsld_plugin.analysis import (
    csv_table,
    decompose,
    decomposition_rows,
    draw_decomposition,
    readable_rows,
)
from wsld_plugin.analysis.bias_variance import PARTS
from wsld_plugin.functional import bias_variance, jackknife


@pytest.fixture
def files(tmp_path: Path):
    """Three runs of two methods on 11 samples, and the labels."""
    torch.manual_seed(0)
    labels = torch.randint(4, (11, ))
    np.save(tmp_path / 'labels.npy', labels.numpy())
    paths = {}
    for name in ('direct', 'distilled'):
        logp = torch.randn(3, 11, 4).log_softmax(-1)
        paths[name] = [tmp_path / f'{name}{i}.npy' for i in range(3)]
        for path, run in zip(paths[name], logp):
            np.save(path, run.numpy())
        paths[f'{name} logp'] = logp
    return paths, tmp_path / 'labels.npy', labels


def test_part_by_part_is_as_at_once(files, monkeypatch) -> None:
    paths, labels, gt_labels = files
    logp, direct = paths['distilled logp'], paths['direct logp']

    def means(kept: list[int]) -> torch.Tensor:
        ours = bias_variance(logp[kept], gt_labels)
        # The term as the paper defines it.
        term = bias_variance(
            logp[kept],
            gt_labels,
            reference=direct[kept].double().mean(0)).distillation
        change = ours.variance - bias_variance(direct[kept],
                                               gt_labels).variance
        return torch.stack(
            [part.mean() for part in (*ours[:4], term, change)])

    expected = jackknife(means, 3)
    for chunk in (4, 100):
        monkeypatch.setattr(module, '_CHUNK', chunk)
        found = decompose(paths['distilled'], labels, paths['direct'])
        torch.testing.assert_close(found, expected)
    error, noise, bias, variance = found.mean[:4]
    torch.testing.assert_close(error, noise + bias + variance)


def test_tables_and_drawing(files) -> None:
    paths, labels, _ = files
    rows = decomposition_rows(
        {
            ('ce', 5): decompose(paths['direct'], labels),
            ('kd', 5): decompose(paths['distilled'], labels, paths['direct'])
        }, 3)
    assert np.isnan(rows[0]['bias change'])
    assert rows[1]['bias change'] == pytest.approx(rows[1]['bias'] -
                                                   rows[0]['bias'])
    ce, kd = readable_rows(rows)
    assert 'noise' not in ce and ce['bias change'] == ''
    assert kd['bias'] == f'{rows[1]["bias"]:.4f} ± {rows[1]["bias error"]:.4f}'
    heading = csv_table(rows).splitlines()[0].split(',')
    assert heading[3::2] == list(PARTS)
    assert draw_decomposition(rows).startswith(b'\x89PNG')
