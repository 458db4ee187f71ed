"""The decomposition of the error, and errors of its parts."""
import math

import oracle
import pytest
import torch
import torch.nn.functional as F

from wsld_plugin.functional import bias_variance, jackknife


def make(runs=5, n=20, classes=4, scale=2.0, soft=False, seed=0,
         dtype=torch.float64):
    """Log-probabilities of runs around a common centre, and labels."""
    gen = torch.Generator().manual_seed(seed)
    centre, noise = (
        torch.randn(shape, generator=gen, dtype=torch.float64)
        for shape in ((n, classes), (runs, n, classes)))
    logp = (scale * (centre + noise)).to(dtype).log_softmax(-1)
    labels = torch.randint(classes, (n, ), generator=gen)
    if soft:
        labels = (2 * torch.randn(
            (n, classes), generator=gen, dtype=torch.float64)).softmax(1)
    return logp, labels


def total(parts):
    return parts.noise + parts.bias + parts.distillation + parts.variance


@pytest.mark.parametrize('shape', [(5, 20, 4), (1, 7, 3), (2, 6, 2),
                                   (3, 2, 200)])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('distilled', [False, True])
def test_parts_match_the_oracle(shape, soft, distilled):
    logp, labels = make(*shape, soft=soft)
    direct = make(4, *shape[1:], seed=9)[0] if distilled else None
    parts = bias_variance(
        logp, labels, reference=None if direct is None else direct.mean(0))
    targets = labels.tolist() if soft else [
        oracle.one_hot(y, shape[2]) for y in labels.tolist()]
    for i, y in enumerate(targets):
        exact = oracle.decompose(
            logp[:, i].tolist(), y,
            None if direct is None else direct[:, i].tolist())
        assert set(exact) == set(parts._fields)
        for name, value in exact.items():
            got = getattr(parts, name)[i].item()
            assert got == pytest.approx(value, rel=1e-10, abs=1e-12), name


@pytest.mark.parametrize('scale', [1e-6, 1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize('runs', [1, 2, 7])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_error_is_the_sum_of_its_parts(scale, runs, soft, dtype):
    logp, labels = make(runs, 50, 10, scale, soft, dtype=dtype)
    direct, _ = make(3, 50, 10, scale, seed=4, dtype=dtype)
    own = -logp.double().log_softmax(-1)
    y = labels if soft else F.one_hot(labels, 10).double()
    error = (y * own).sum(-1).mean(0)
    for reference in (None, direct.mean(0)):
        parts = bias_variance(logp, labels, reference=reference)
        for part in parts:
            assert part.shape == (50, ) and part.dtype == torch.float64
        torch.testing.assert_close(
            parts.error, error, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            total(parts), parts.error, rtol=0, atol=1e-10)
        for part in (parts.noise, parts.bias, parts.variance):
            assert (part >= 0).all()


def test_logits_are_normalised():
    logp, labels = make(scale=1.0)
    shift = torch.randn(5, 20, 1, dtype=torch.float64)
    for got, exact in zip(bias_variance(logp + shift, labels),
                          bias_variance(logp, labels)):
        torch.testing.assert_close(got, exact)


def test_jackknife_makes_the_plug_in_variance_unbiased():
    x = make(6, 3, 2)[0].flatten(1)
    mean, _ = jackknife(lambda kept: x[kept].var(0, unbiased=False), 6)
    torch.testing.assert_close(mean, x.var(0))


def test_jackknife_of_a_constant_is_certain():
    mean, error = jackknife(lambda kept: torch.tensor([0.1, 7.0]), 5)
    assert mean.tolist() == torch.tensor([0.1, 7.0]).double().tolist()
    assert error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize('change,error,match', [
    (dict(logp=[[0.0]]), TypeError, 'logp must be a float tensor, got list'),
    (dict(logp=torch.zeros(2, 3, 4).long()), TypeError, 'logp.*int64'),
    (dict(logp=torch.zeros(3, 4)), ValueError,
     r'logp must have shape \(runs, N, C\), got \(3, 4\)'),
    (dict(logp=torch.zeros(0, 3, 4)), ValueError, 'at least one run'),
    (dict(logp=torch.zeros(2, 3, 4).log()), ValueError, 'finite.*log_soft'),
    (dict(gt_labels=[0, 1, 2]), TypeError, 'gt_labels must be a tensor'),
    # More of these in test_wsld.py; here none is ignored.
    (dict(gt_labels=torch.tensor([0, -100, 1])), ValueError, 'got -100'),
    (dict(gt_labels=torch.full((3, 4), 0.2)), ValueError, 'add up to 1'),
    (dict(reference=torch.zeros(3, 5)), ValueError,
     r'reference must have shape \(3, 4\), got \(3, 5\)'),
    (dict(reference=torch.zeros(1, 3, 4)), ValueError, r'\(N, C\)'),
    (dict(reference=torch.full((3, 4), math.nan)), ValueError,
     'reference must be finite'),
])
def test_bad_input_is_refused(change, error, match):
    good = dict(logp=torch.zeros(2, 3, 4), gt_labels=torch.tensor([0, 1, 3]))
    bias_variance(**good)
    with pytest.raises(error, match=match):
        bias_variance(**{**good, **change})


def test_one_run_has_no_jackknife_error():
    with pytest.raises(ValueError, match='runs must be at least 2, got 1'):
        jackknife(lambda kept: torch.zeros(()), 1)
