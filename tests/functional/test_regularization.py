"""Regularization samples and what the schemes do with them."""
import itertools
import math

import oracle
import pytest
import torch
from loss_tester import gradient, make, needs_compiler, rows_of, targets_of

from wsld_plugin.functional import regularization_samples, wsld_loss
from wsld_plugin.functional.regularization import _label_gradients
from wsld_plugin.functional.schemes import sample_weight

TAUS = [0.5, 1.0, 2.0, 4.0, 20.0]
ALL = ['wsld', 'uniform', 'drop_regularization', 'only_regularization',
       'entropy', 'drop_random', dict(regularization=0.25, other=1.5)]


def draw(shape=(40, 6), seed=0, **settings):
    student, *others = make(shape, seed, **settings)
    return student.detach(), *others


def oracle_of(function, student, teacher, labels, tau):
    rows = [function(*row, tau) for row in zip(
        rows_of(student), rows_of(teacher),
        targets_of(labels, student.shape[1]))]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('shape', [(40, 6), (9, 2), (2, 5, 3, 4)], ids=str)
@pytest.mark.parametrize('soft', [False, True])
def test_derivatives_match_the_oracle(tau, shape, soft):
    data = draw(shape, soft=soft)
    a, g = _label_gradients(*data, tau)
    exact = oracle_of(oracle.label_gradients, *data, tau)
    for part, column in zip((a, g - a), exact.unbind(1)):
        torch.testing.assert_close(
            part.flatten(), column, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('margin_s,margin_t', itertools.product(
    [-30.0, -8.0, 8.0, 30.0, 60.0], [-25.0, 0.0, 12.0, 35.0, 70.0]))
@pytest.mark.parametrize('tau', [1.0, 2.0])
@pytest.mark.parametrize('soft', [False, True])
def test_confident_networks_keep_their_digits(margin_s, margin_t, tau, soft):
    student, teacher = torch.zeros(2, 1, 10)
    student[0, 3], teacher[0, 3] = margin_s, margin_t
    one_hot = oracle.one_hot(3, 10)
    label = torch.tensor([one_hot] if soft else [3])
    a, g = _label_gradients(student, teacher, label, tau)
    exact = oracle.label_gradients(student[0].tolist(), teacher[0].tolist(),
                                   one_hot, tau)
    assert a.item() == pytest.approx(exact[0], rel=1e-5, abs=0)
    # b is a difference; what it may lose is relative to its larger part.
    part = max(abs(exact[0]), abs(exact[0] + exact[1]))
    assert (g - a).item() == pytest.approx(
        exact[1], rel=1e-5, abs=1e-6 * part)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_derivatives_are_finite_at_huge_logits(soft, dtype):
    student, teacher, labels = draw(scale=1e4, soft=soft, dtype=dtype)
    student[:5] = teacher[:5]
    for part in _label_gradients(student, teacher, labels, 2.0):
        assert part.dtype == dtype and torch.isfinite(part).all()


def test_a_single_class_has_no_derivatives():
    z = torch.randn(3, 1)
    for labels in (torch.zeros(3, dtype=torch.long), torch.ones(3, 1)):
        for part in _label_gradients(z, z + 1, labels, 2.0):
            assert (part == 0).all()


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('shape', [(60, 6), (2, 5, 3, 4)], ids=str)
@pytest.mark.parametrize('soft', [False, True])
def test_samples_match_the_oracle(tau, shape, soft):
    data = draw(shape, 3, soft=soft)
    got = regularization_samples(*data, tau=tau)
    exact = oracle_of(oracle.is_regularization, *data, tau).bool()
    assert got.dtype == torch.bool and got.shape == (shape[0], *shape[2:])
    assert torch.equal(got.flatten(), exact)
    assert 0 < exact.sum() < len(exact)
    if not soft:
        labels = data[2].masked_fill(got, 255)
        assert not regularization_samples(
            *data[:2], labels, tau=tau, ignore_index=255).any()


def test_a_small_excess_is_not_rounded_away():
    student, teacher = torch.zeros(2, 2, 3)
    student[:, 0] = torch.tensor([-20.0, -25.0])
    teacher[:, 0] = torch.tensor([-25.0, -20.0])
    labels = torch.tensor([0, 0])
    a, g = _label_gradients(student, teacher, labels, 1.0)
    assert torch.equal(a.abs(), (g - a).abs())
    assert regularization_samples(
        student, teacher, labels, tau=1.0).tolist() == [True, False]


@pytest.mark.parametrize('ignored', [False, True])
def test_a_random_share_as_large_is_dropped(ignored):
    data = draw((50, 6))
    gone = torch.zeros(50, dtype=torch.bool)
    gone[::2] = ignored
    flags = regularization_samples(*data, tau=2.0) & ~gone
    count, kept = flags.sum().item(), (~gone).sum().item()
    assert 5 < count < kept - 2

    def dropped():
        weight = sample_weight(*data, 'drop_random', tau=2.0, ignored=gone)
        return (weight == 0) & ~gone

    torch.manual_seed(0)
    draws = torch.stack([dropped() for _ in range(600)])
    assert (draws.sum(1) == count).all()
    # Every position that counts is dropped equally often, within 5 sigma.
    share = count / kept
    often = draws.double().mean(0)[~gone]
    assert (often - share).abs().max() < 5 * math.sqrt(
        share * (1 - share) / 600)
    torch.manual_seed(0)
    assert torch.equal(dropped(), draws[0])


@pytest.mark.parametrize('weighting', ALL, ids=str)
@pytest.mark.parametrize('soft', [False, True])
def test_nothing_is_read_back_from_the_device(weighting, soft):
    # A tensor without data has nothing that could be read.
    student = torch.zeros(4, 3, 2, device='meta', requires_grad=True)
    labels = torch.zeros(4, 2, dtype=torch.long, device='meta')
    if soft:
        labels = torch.zeros(4, 3, 2, device='meta')
    loss = wsld_loss(student, student.detach(), labels, 2.0,
                     weighting=weighting)
    assert loss.shape == ()
    assert gradient(loss, student).shape == student.shape


@needs_compiler
@pytest.mark.parametrize('weighting', ALL[2:], ids=str)
def test_schemes_trace_without_graph_breaks(weighting):
    torch._dynamo.reset()
    student, teacher, labels = make((5, 6, 2))
    compiled = torch.compile(wsld_loss, fullgraph=True, backend='aot_eager')
    got, expected = (
        loss(student, teacher, labels, 2.0, weighting=weighting)
        for loss in (compiled, wsld_loss) if torch.manual_seed(4))
    if weighting != 'drop_random':  # Compiled code draws other numbers.
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(gradient(got, student),
                                   gradient(expected, student))


def test_bad_input_is_refused():
    z = torch.zeros(2, 3)
    for labels, tau, match in (([0, 2], 0.0, 'tau must be above 0, got 0'),
                               ([0, 3], 2.0, r'in \[0, 3\)')):
        with pytest.raises(ValueError, match=match):
            regularization_samples(z, z, torch.tensor(labels), tau=tau)
