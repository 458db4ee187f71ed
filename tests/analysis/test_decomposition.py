"""Decomposing files of predictions."""

import numpy as np
import pytest
import torch

from wsld_plugin.distillation.bias_variance import (
    PARTS,
    decompose,
    decomposition_table,
    draw_decomposition,
    readable_decomposition,
)
from wsld_plugin.functional import bias_variance, jackknife


@pytest.fixture
def files(tmp_path):
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


def test_parts_are_those_of_the_paper(files):
    paths, labels, gt_labels = files
    logp, direct = paths['distilled logp'], paths['direct logp']

    def means(kept):
        ours = bias_variance(logp[kept], gt_labels)
        # The term as the paper defines it.
        term = bias_variance(
            logp[kept], gt_labels,
            reference=direct[kept].double().mean(0)).distillation
        change = ours.variance - bias_variance(
            direct[kept], gt_labels).variance
        return torch.stack([
            part.mean() for part in (*ours[:4], term, change)])

    expected = jackknife(means, 3)
    found = decompose(paths['distilled'], labels, paths['direct'])
    torch.testing.assert_close(found, expected)
    error, noise, bias, variance = found.mean[:4]
    torch.testing.assert_close(error, noise + bias + variance)


def test_tables_and_drawing(files):
    paths, labels, _ = files
    # Not in the order of the alphabet or of the epochs.
    table = decomposition_table({
        ('z', 9): decompose(paths['direct'], labels),
        ('kd', 20): decompose(paths['distilled'], labels, paths['direct']),
        ('kd', 3): decompose(paths['distilled'], labels, paths['direct'])})
    assert table['part'].tolist() == 3 * list(PARTS)
    means = table.set_index(['config', 'epoch', 'part'])['mean']
    assert np.isnan(means['z', 9, 'bias change'])
    assert means['kd', 20, 'bias change'] == pytest.approx(
        means['kd', 20, 'bias'] - means['z', 9, 'bias'])
    shown = readable_decomposition(table)
    assert [*shown] == [
        'config', 'epoch', *(part for part in PARTS if part != 'noise')]
    assert shown['config'].tolist() == ['z', 'kd', 'kd']
    assert shown['epoch'].tolist() == [9, 20, 3]
    assert shown['bias change'][0] == ''
    row = table[(table.config == 'kd') & (table.part == 'bias')].iloc[0]
    assert shown['bias'][1] == f'{row["mean"]:.4f} ± {row.standard_error:.4f}'
    noisy = table.assign(mean=table['mean'].where(table.part != 'noise', 0.5))
    assert 'noise' in readable_decomposition(noisy)
    assert draw_decomposition(table).startswith(b'\x89PNG')
