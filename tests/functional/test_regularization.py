"""Regularization samples and what the schemes do with them."""
from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wsld_plugin.functional import (
    label_gradients,
    regularization_samples,
    sample_weight,
    wsld_loss,
    wsld_weight,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle
from loss_tester import make as make_batch
from loss_tester import rows_of, targets_of

TAUS = [0.5, 1.0, 2.0, 4.0, 20.0]
NAMES = ['wsld', 'uniform', 'drop_regularization', 'only_regularization']
CONSTANT = dict(regularization=0.25, other=1.5)


def make(shape=(40, 6), *args, **options):
    student, *rest = make_batch(shape, *args, **options)
    return (student.detach(), *rest)


def oracle_of(function, student, teacher, labels, tau, *rest):
    rows = [
        function(s, t, y, tau, *rest)
        for s, t, y in zip(rows_of(student), rows_of(teacher),
                           targets_of(labels, student.shape[1]))
    ]
    return torch.tensor(rows, dtype=torch.float64)


# ------------------------------------------------------------ derivatives
@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('shape', [(40, 6), (9, 2), (2, 5, 3, 4)])
@pytest.mark.parametrize('soft', [False, True])
def test_derivatives_match_the_oracle(tau, shape, soft):
    student, teacher, labels = make(shape, soft=soft)
    got = label_gradients(student, teacher, labels, tau=tau)
    exact = oracle_of(oracle.label_gradients, student, teacher, labels, tau)
    for part, column in zip(got, exact.unbind(1)):
        assert part.dtype == torch.float64 and not part.requires_grad
        assert part.shape == (shape[0], *shape[2:])
        torch.testing.assert_close(
            part.flatten(), column, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('soft', [False, True])
def test_derivatives_are_those_of_the_two_losses(tau, soft):
    student, teacher, labels = make(soft=soft)
    y = labels if soft else F.one_hot(labels, 6).double()

    def losses(s):
        kd = -(tau**2 * (teacher / tau).softmax(1) *
               (s / tau).log_softmax(1)).sum(1)
        ce = -(y * s.log_softmax(1)).sum(1)
        return ce, kd - ce

    got = label_gradients(student, teacher, labels, tau=tau)
    step = 1e-5
    ahead, behind = losses(student + step * y), losses(student - step * y)
    leaf = student.clone().requires_grad_()
    for i, part in enumerate(got):
        grad, = torch.autograd.grad(losses(leaf)[i].sum(), leaf)
        torch.testing.assert_close(part, (y * grad).sum(1))
        torch.testing.assert_close(
            part, (ahead[i] - behind[i]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('scale', [0.1, 5.0, 300.0])
def test_one_hot_labels_are_class_indices(tau, scale):
    student, teacher, labels = make(scale=scale, dtype=torch.float32)
    one_hot = F.one_hot(labels, 6).float()
    for hard, soft in zip(
            label_gradients(student, teacher, labels, tau=tau),
            label_gradients(student, teacher, one_hot, tau=tau)):
        torch.testing.assert_close(soft, hard, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize('margin_s', [-30.0, -8.0, 8.0, 30.0, 60.0])
@pytest.mark.parametrize('margin_t', [-25.0, 0.0, 12.0, 35.0, 70.0])
@pytest.mark.parametrize('tau', [1.0, 2.0])
@pytest.mark.parametrize('soft', [False, True])
def test_confident_networks_keep_their_digits(margin_s, margin_t, tau, soft):
    student, teacher = torch.zeros(1, 10), torch.zeros(1, 10)
    student[0, 3], teacher[0, 3] = margin_s, margin_t
    label = torch.tensor([3])
    if soft:
        label = F.one_hot(label, 10).float()
    a, b = label_gradients(student, teacher, label, tau=tau)
    exact = oracle.label_gradients(student[0].tolist(), teacher[0].tolist(),
                                   oracle.one_hot(3, 10), tau)
    assert a.item() == pytest.approx(exact[0], rel=1e-5, abs=0)
    # b is a difference; what it may lose is relative to its larger part.
    part = max(abs(exact[0]), abs(exact[0] + exact[1]))
    assert b.item() == pytest.approx(exact[1], rel=1e-5, abs=1e-6 * part)
    assert a.dtype == b.dtype == torch.float32


def test_derivatives_by_hand():
    # The label's probability is 3/4 for the student, 1/2 for the teacher.
    student = torch.tensor([[math.log(3.0), 0.0]])
    a, b = label_gradients(student, torch.zeros(1, 2), torch.tensor([0]),
                           tau=1.0)
    assert (a.item(), b.item()) == pytest.approx((-0.25, 0.5))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    student, teacher, labels = make(dtype=dtype)
    for got, wide in zip(
            label_gradients(student, teacher, labels, tau=2.0),
            label_gradients(student.float(), teacher.float(), labels,
                            tau=2.0)):
        assert got.dtype == torch.float32
        assert torch.equal(got, wide)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_derivatives_are_finite_at_huge_logits(soft, dtype):
    student, teacher, labels = make(scale=1e4, soft=soft, dtype=dtype)
    student[:5] = teacher[:5]
    for part in label_gradients(student, teacher, labels, tau=2.0):
        assert torch.isfinite(part).all()


def test_a_single_class_has_no_derivatives():
    z, label = torch.randn(3, 1), torch.zeros(3, dtype=torch.long)
    for labels in (label, torch.ones(3, 1)):
        for part in label_gradients(z, z + 1, labels, tau=2.0):
            assert (part == 0).all()


# ---------------------------------------------------------------- samples
@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('shape', [(60, 6), (2, 5, 3, 4)])
@pytest.mark.parametrize('soft', [False, True])
def test_samples_match_the_oracle(tau, shape, soft):
    student, teacher, labels = make(shape, 3, soft=soft)
    got = regularization_samples(
        student, teacher, labels, tau=tau)
    exact = oracle_of(oracle.is_regularization, student, teacher, labels,
                      tau).bool()
    assert got.dtype == torch.bool
    assert got.shape == (shape[0], *shape[2:])
    assert torch.equal(got.flatten(), exact)
    assert 0 < exact.sum() <= len(exact)


def test_a_teacher_that_agrees_makes_no_regularization_sample():
    # Where both networks are equal b is exactly -a: no larger.
    student = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]])
    teacher = torch.tensor([[0.0, 9.0, 0.5], [1.0, 2.0, 0.5]])
    assert regularization_samples(
        student, teacher, torch.tensor([0, 0]),
        tau=2.0).tolist() == [True, False]


def test_a_small_excess_is_not_rounded_away():
    student, teacher = torch.zeros(2, 3), torch.zeros(2, 3)
    student[:, 0] = torch.tensor([-20.0, -25.0])
    teacher[:, 0] = torch.tensor([-25.0, -20.0])
    labels = torch.tensor([0, 0])
    a, b = label_gradients(student, teacher, labels, tau=1.0)
    assert torch.equal(a.abs(), b.abs())
    assert regularization_samples(
        student, teacher, labels, tau=1.0).tolist() == [True, False]


@pytest.mark.parametrize('soft', [False, True])
def test_dense_is_flattened(soft):
    student, teacher, labels = make((2, 5, 3, 4), soft=soft)

    def flat(x):
        return x.movedim(1, -1).flatten(0, -2)

    flat_labels = flat(labels) if soft else labels.flatten()
    for weighting in (*NAMES, 'drop_random', CONSTANT):
        torch.manual_seed(1)
        dense = sample_weight(student, teacher, labels, weighting, tau=2.0)
        torch.manual_seed(1)
        rows = sample_weight(
            flat(student), flat(teacher), flat_labels, weighting, tau=2.0)
        torch.testing.assert_close(dense.flatten(), rows)


def test_positions_that_do_not_count_are_left_out():
    student, teacher, labels = make((60, 6))
    gone = torch.arange(60) % 3 == 0
    masked = labels.masked_fill(gone, 255)
    kept = dict(tau=2.0, ignore_index=255)
    whole = regularization_samples(
        student, teacher, labels, tau=2.0)
    assert whole[gone].any()
    assert torch.equal(
        regularization_samples(student, teacher, masked, **kept),
        whole & ~gone)
    for part, full in zip(
            label_gradients(student, teacher, masked, **kept),
            label_gradients(student, teacher, labels, tau=2.0)):
        assert torch.equal(part, full.masked_fill(gone, 0))


# ---------------------------------------------------------------- schemes
def expected_weight(student, teacher, labels, weighting, tau):
    if weighting == 'wsld':
        return wsld_weight(student, teacher, labels)
    flags = oracle_of(oracle.is_regularization, student, teacher, labels,
                      tau).bool().view(student[:, 0].shape)
    assert 0 < flags.sum() < flags.numel()
    regularization, other = {
        'uniform': (1.0, 1.0), 'drop_regularization': (0.0, 1.0),
        'only_regularization': (1.0, 0.0),
    }.get(str(weighting), (0.25, 1.5))
    return torch.where(flags, regularization, other).double()


@pytest.mark.parametrize('weighting', [*NAMES, CONSTANT], ids=str)
@pytest.mark.parametrize('shape', [(40, 6), (2, 5, 3, 4)])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_schemes_weight_the_oracles_loss(weighting, shape, soft, tau):
    student, teacher, labels = make(shape, 5, soft=soft)
    student.requires_grad_()
    weight = expected_weight(
        student.detach(), teacher, labels, weighting, tau)
    torch.testing.assert_close(
        sample_weight(student, teacher, labels, weighting, tau=tau), weight)
    rows = torch.tensor([
        oracle.soft_loss(s, t, tau)
        for s, t in zip(rows_of(student.detach()), rows_of(teacher))
    ], dtype=torch.float64).view(weight.shape) * weight
    grad = 2.5 * tau * weight.unsqueeze(1) * (
        (student.detach() / tau).softmax(1) -
        (teacher / tau).softmax(1)) / weight.numel()
    none = wsld_loss(student, teacher, labels, tau, reduction='none',
                     weighting=weighting)
    torch.testing.assert_close(none.detach(), rows)
    loss = wsld_loss(student, teacher, labels, tau, 2.5, weighting=weighting)
    assert loss.item() == pytest.approx(
        2.5 * rows.sum().item() / rows.numel(), rel=1e-12)
    got, = torch.autograd.grad(loss, student)
    torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    'weighting', [*NAMES, 'drop_random', CONSTANT], ids=str)
def test_the_mean_is_over_all_that_count(weighting):
    student, teacher, labels = make((30, 6))
    gone = torch.arange(30) % 3 == 0
    labels[gone] = 255
    student.requires_grad_()
    torch.manual_seed(4)
    rows = wsld_loss(student, teacher, labels, 2.0, reduction='none',
                     ignore_index=255, weighting=weighting)
    torch.manual_seed(4)
    loss = wsld_loss(student, teacher, labels, 2.0, ignore_index=255,
                     weighting=weighting)
    assert (rows[gone] == 0).all()
    torch.testing.assert_close(loss, rows.sum() / 20)
    grad, = torch.autograd.grad(loss, student)
    assert (grad[gone] == 0).all() and grad.abs().sum() > 0


@pytest.mark.parametrize('weighting', ['uniform', 'drop_random', CONSTANT],
                         ids=str)
@pytest.mark.parametrize('shape', [(0, 4), (3, 4), (2, 4, 2, 2)])
def test_nothing_that_counts_gives_zero(weighting, shape):
    student = torch.randn(shape, requires_grad=True)
    labels = torch.full((shape[0], *shape[2:]), -100)
    loss = wsld_loss(student, torch.randn(shape), labels, 2.0,
                     weighting=weighting)
    assert loss == 0
    loss.backward()
    assert (student.grad == 0).all()


@pytest.mark.parametrize('ignored', [False, True])
def test_a_random_share_as_large_is_dropped(ignored):
    student, teacher, labels = make((50, 6))
    gone = torch.zeros(50, dtype=torch.bool)
    if ignored:
        gone[::2] = True
        labels[gone] = -100
    flags = regularization_samples(student, teacher, labels, tau=2.0)
    count, kept = flags.sum().item(), (~gone).sum().item()
    assert 5 < count < kept - 2

    def draw():
        return sample_weight(student, teacher, labels, 'drop_random',
                             tau=2.0)

    torch.manual_seed(0)
    dropped = torch.stack([(draw() == 0) & ~gone for _ in range(600)])
    assert (dropped.sum(1) == count).all()
    # Every position that counts is dropped equally often, within 5 sigma.
    share = count / kept
    sigma = math.sqrt(share * (1 - share) / 600)
    often = dropped.double().mean(0)[~gone]
    assert (often - share).abs().max() < 5 * sigma
    torch.manual_seed(3)
    first = draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize(
    'weighting', [*NAMES, 'drop_random', CONSTANT], ids=str)
@pytest.mark.parametrize('soft', [False, True])
def test_nothing_is_read_back_from_the_device(weighting, soft):
    # A tensor without data has nothing that could be read.
    student = torch.zeros(4, 3, 2, device='meta', requires_grad=True)
    labels = torch.zeros(4, 2, dtype=torch.long, device='meta')
    if soft:
        labels = torch.zeros(4, 3, 2, device='meta')
    loss = wsld_loss(student, student.detach(), labels, 2.0,
                     weighting=weighting)
    assert loss.shape == () and loss.requires_grad


@pytest.mark.skipif(
    not hasattr(getattr(torch, 'compiler', None), 'is_compiling'),
    reason='this torch cannot tell that it compiles')
@pytest.mark.parametrize(
    'weighting', ['uniform', 'only_regularization', CONSTANT], ids=str)
def test_schemes_trace_without_graph_breaks(weighting):
    torch._dynamo.reset()
    student, teacher, labels = make((5, 6, 2))
    student.requires_grad_()

    def loss(s):
        return wsld_loss(s, teacher, labels, 2.0, weighting=weighting)

    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')
    expected, got = loss(student), compiled(student)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, student)[0] for x in (got, expected)))


def test_a_random_drop_traces_too():
    if not hasattr(getattr(torch, 'compiler', None), 'is_compiling'):
        pytest.skip('this torch cannot tell that it compiles')
    torch._dynamo.reset()
    student, teacher, labels = make()
    compiled = torch.compile(sample_weight, fullgraph=True,
                             backend='aot_eager')
    weight = compiled(student, teacher, labels, 'drop_random', tau=2.0)
    flags = regularization_samples(student, teacher, labels, tau=2.0)
    assert (weight == 0).sum() == flags.sum() > 0


# ----------------------------------------------------------------- errors
GOOD = dict(student=torch.zeros(2, 3), teacher=torch.zeros(2, 3),
            gt_labels=torch.tensor([0, 2]), tau=2.0)


@pytest.mark.parametrize('function', [label_gradients,
                                      regularization_samples])
@pytest.mark.parametrize('change,error,match', [
    (dict(tau=0.0), ValueError, 'tau must be above 0, got 0'),
    (dict(tau=float('nan')), ValueError, 'tau must be finite, got nan'),
    (dict(student=[[0.0]]), TypeError, 'student must be a tensor'),
    (dict(teacher=torch.zeros(2, 4)), ValueError, 'same classes'),
    (dict(gt_labels=torch.tensor([0, 3])), ValueError, r'in \[0, 3\)'),
    (dict(gt_labels=torch.tensor([True, False])), TypeError, 'bool'),
])
def test_bad_input_is_refused(function, change, error, match):
    function(**GOOD)
    with pytest.raises(error, match=match):
        function(**{**GOOD, **change})


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match=r"weighting must be one of.*'kd'"):
        wsld_loss(**GOOD, weighting='kd')
    with pytest.raises(ValueError, match='eps belongs to'):
        wsld_loss(**GOOD, weighting='uniform', eps=1e-7)
