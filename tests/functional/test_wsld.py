"""The WSLD maths against an independent oracle, closed forms and itself."""
from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from wsld_plugin.functional import (
    blocks,
    log_cross_entropy,
    wsld_loss,
    wsld_weight,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle
from loss_tester import make, rows_of, targets_of


def oracle_rows(student, teacher, labels, tau, eps=0.0, ignore=-100):
    """Losses and gradients, row by row; zero where ignored."""
    classes = student.shape[1]
    kept = labels if labels.is_floating_point() else labels.clamp(
        0, classes - 1)
    rows = [
        oracle.row(s, t, y, tau, eps)
        for s, t, y in zip(rows_of(student), rows_of(teacher),
                           targets_of(kept, classes))
    ]
    losses, grads = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows))
    if not labels.is_floating_point():
        ignored = labels.flatten() == ignore
        losses[ignored], grads[ignored] = 0, 0
    return losses, grads


def value_and_rows(loss, student):
    grad, = torch.autograd.grad(loss, student)
    return loss.item(), torch.tensor(rows_of(grad), dtype=torch.float64)


# ---------------------------------------------------------------- oracle
@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
def test_reductions_leave_ignored_rows_out(reduction):
    student, teacher, labels = make((4, 5, 3, 2))
    labels[0, 0, 0] = labels[2, 1] = 255
    losses, grads = oracle_rows(student, teacher, labels, 2.0, ignore=255)
    count = (labels != 255).sum().item()
    assert 0 < count < labels.numel()
    loss = wsld_loss(student, teacher, labels, 2.0, reduction=reduction,
                ignore_index=255)
    if reduction == 'none':
        assert loss.shape == labels.shape
        torch.testing.assert_close(loss.flatten(), losses)
        loss = loss.sum()
    scale = 1 / count if reduction == 'mean' else 1.0
    value, grad = value_and_rows(loss, student)
    assert value == pytest.approx(scale * losses.sum().item(), rel=1e-12)
    torch.testing.assert_close(grad, scale * grads, rtol=1e-10, atol=1e-15)


# ----------------------------------------------------------- closed forms
def test_weight_closed_forms():
    label = torch.tensor([0])
    equal = torch.tensor([[1.0, 3.0, -2.0]])
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    assert wsld_weight(equal, equal, label).item() == pytest.approx(
        1 - 1 / math.e, rel=1e-6)
    assert wsld_weight(equal, sure, label).item() == 1.0
    assert wsld_weight(sure, equal, label).item() == 0.0


def test_two_classes_by_hand():
    # p_s = 3/4, p_t = 1/2 on the label: CE 0.28768 and 0.69315.
    student = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)
    teacher = torch.zeros(1, 2)
    label = torch.tensor([0])
    w = 1 - math.exp(-math.log(4 / 3) / math.log(2))
    soft = 0.5 * math.log(4 / 3) + 0.5 * math.log(4)
    loss = wsld_loss(student, teacher, label)
    assert loss.item() == pytest.approx(w * soft, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad,
                               torch.tensor([[w * 0.25, -w * 0.25]]))


def test_one_class_carries_nothing():
    student = torch.randn(3, 1, requires_grad=True)
    loss = wsld_loss(student, torch.randn(3, 1), torch.zeros(3).long(), 9.0)
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


# ------------------------------------------------------------- properties
@pytest.mark.parametrize('seed', range(20))
def test_properties_of_random_draws(seed):
    scale = [0.01, 1.0, 10.0, 60.0][seed % 4]
    student, teacher, labels = make((6, 9), seed, scale=scale)
    student = student.detach()
    tau = [1.0, 2.0, 4.0, 7.5, 0.5][seed % 5]
    rows = wsld_loss(student, teacher, labels, tau, reduction='none')
    close = {'rtol': 1e-9, 'atol': 1e-12}

    shift = torch.randn(6, 1, dtype=torch.float64) * 50
    torch.testing.assert_close(
        wsld_loss(student + shift, teacher - shift, labels, tau,
             reduction='none'), rows, **close)
    order = torch.randperm(9)
    torch.testing.assert_close(
        wsld_loss(student[:, order], teacher[:, order],
                  order.argsort()[labels], tau, reduction='none'), rows,
        **close)
    batch = torch.randperm(6)
    torch.testing.assert_close(
        wsld_loss(student[batch], teacher[batch], labels[batch], tau,
             reduction='none'), rows[batch], **close)
    torch.testing.assert_close(
        wsld_loss(student.repeat(3, 1), teacher.repeat(3, 1), labels.repeat(3),
             tau), rows.mean(), **close)
    one_hot = torch.nn.functional.one_hot(labels, 9).double()
    torch.testing.assert_close(
        wsld_loss(student, teacher, one_hot, tau, reduction='none'), rows,
        **close)
    keep = torch.rand(6) < 0.6
    masked = torch.where(keep, labels, torch.tensor(-100))
    torch.testing.assert_close(
        wsld_loss(student, teacher, masked, tau, reduction='sum'),
        wsld_loss(student[keep], teacher[keep], labels[keep], tau,
             reduction='sum'), **close)
    dense = wsld_loss(
        student.T.reshape(1, 9, 2, 3), teacher.T.reshape(1, 9, 2, 3),
        labels.reshape(1, 2, 3), tau, reduction='none')
    torch.testing.assert_close(dense.flatten(), rows, **close)


@pytest.mark.parametrize('seed', range(10))
def test_weight_is_a_share_and_monotone(seed):
    student, teacher, labels = make((50, 6), seed, torch.float32, scale=8.0)
    student = student.detach()
    weight = wsld_weight(student, teacher, labels)
    assert weight.min() >= 0 and weight.max() <= 1
    up = torch.nn.functional.one_hot(labels, 6) * 0.5
    assert (wsld_weight(student + up, teacher, labels) <= weight).all()
    assert (wsld_weight(student, teacher + up, labels) >= weight).all()


# -------------------------------------------------------------- gradients
@pytest.mark.parametrize('shape', [(3, 5), (2, 4, 2, 2)])
@pytest.mark.parametrize('soft', [False, True])
def test_gradcheck_with_the_weight_held(shape, soft):
    student, teacher, labels = make(shape, soft=soft, scale=1.0)

    def soft_label_loss(s):
        # The weight is a constant to autograd; dividing it out leaves a
        # function whose numerical derivative is the analytical one.
        rows = wsld_loss(s, teacher, labels, 2.0, reduction='none')
        return rows / wsld_weight(s, teacher, labels)

    assert torch.autograd.gradcheck(soft_label_loss, student)
    assert torch.autograd.gradgradcheck(soft_label_loss, student)


def test_teacher_and_weight_get_no_gradient():
    student, teacher, labels = make((4, 3))
    teacher.requires_grad_()
    wsld_loss(student, teacher, labels, 2.0).backward()
    assert teacher.grad is None
    assert not wsld_loss(student.detach(), teacher, labels).requires_grad
    assert not wsld_weight(student, teacher, labels).requires_grad


@pytest.mark.parametrize('reduction', ['none', 'mean'])
def test_backward_twice_gives_the_same_gradient(reduction):
    student, teacher, labels = make((4, 3))
    loss = wsld_loss(student, teacher, labels, 2.0, reduction=reduction)
    go = torch.full_like(loss, 3.0)
    first, = torch.autograd.grad(loss, student, go, retain_graph=True)
    kept = first.clone()
    second, = torch.autograd.grad(loss, student, go)
    torch.testing.assert_close(first, kept)
    torch.testing.assert_close(second, first)


def test_gradients_accumulate_over_two_losses():
    student, teacher, labels = make((4, 3))
    (wsld_loss(student, teacher, labels) +
     2 * wsld_loss(student, teacher, labels)).backward()
    once, = torch.autograd.grad(
        wsld_loss(student, teacher, labels), student)
    torch.testing.assert_close(student.grad, 3 * once)


@pytest.mark.parametrize('size', [1e2, 1e4])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_at_huge_logits(size, soft, dtype):
    student, teacher, labels = make((64, 5), 3, dtype, size, soft)
    with torch.no_grad():
        teacher[:8] = student[:8]
        student[8:16, 0] = size * 3
        teacher[8:16, 0] = size * 2
    loss = wsld_loss(student, teacher, labels, 2.0)
    grad, = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and torch.isfinite(grad).all()
    exact, exact_grad = oracle_rows(student, teacher, labels, 2.0)
    assert loss.item() == pytest.approx(exact.mean().item(), rel=1e-5)
    torch.testing.assert_close(
        torch.tensor(rows_of(grad)).double(), exact_grad / 64, rtol=1e-3,
        atol=1e-6)


@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('shape', [(0, 4), (0, 4, 3, 3), (3, 4), (2, 4, 2, 2)])
def test_nothing_that_counts_gives_zero(reduction, shape):
    student = torch.randn(shape, requires_grad=True)
    labels = torch.full((shape[0], *shape[2:]), -100)
    loss = wsld_loss(student, torch.randn(shape), labels, 2.0,
                reduction=reduction)
    assert loss.requires_grad and loss.sum() == 0
    loss.sum().backward()
    assert student.grad.shape == student.shape
    assert (student.grad == 0).all()


# -------------------------------------------------------------- precision
@pytest.mark.parametrize('margin_t', [10, 20, 40, 60, 80, 100])
@pytest.mark.parametrize('margin_s', [10, 20, 40, 60, 80, 100])
@pytest.mark.parametrize('classes', [2, 100, 1000])
def test_weight_is_exact_for_confident_models(margin_t, margin_s, classes):
    label = classes // 2
    rows = []
    for margin in (margin_s, margin_t):
        z = torch.zeros(classes)
        z[label] = margin
        rows.append(z)
    exact = oracle.weight(rows[0].tolist(), rows[1].tolist(),
                          oracle.one_hot(label, classes))
    student, teacher = (r.unsqueeze(0) for r in rows)
    labels = torch.tensor([label])
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    for y in (labels, one_hot):
        got = wsld_weight(student, teacher, y).item()
        assert got == pytest.approx(exact, rel=3e-5, abs=1e-37)
        rows_fused = wsld_loss(student, teacher, y, 64.0, reduction='none')
        soft = oracle.soft_loss(student[0].tolist(), teacher[0].tolist(),
                                64.0)
        assert rows_fused.item() / soft == pytest.approx(
            exact, rel=3e-5, abs=1e-18)


def test_log_cross_entropy_where_float32_would_give_zero():
    z = torch.tensor([[30.0, 0.0, 0.0]])
    label = torch.tensor([0])
    assert torch.nn.functional.cross_entropy(z, label).item() < 1e-12
    assert log_cross_entropy(z, label).item() == pytest.approx(
        math.log(2) - 30, rel=1e-6)


def test_a_student_in_half_precision_meets_a_teacher_in_float32():
    student, teacher, labels = make((8, 10), dtype=torch.bfloat16)
    teacher = teacher.float()
    loss = wsld_loss(student, teacher, labels, 2.0)
    losses, _ = oracle_rows(student, teacher, labels, 2.0)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=2e-6)
    loss.backward()
    assert student.grad.dtype == torch.bfloat16


@pytest.mark.parametrize('classes', [1000, 100_000, 1_000_000])
def test_the_labels_own_entry_keeps_its_digits(classes):
    student, teacher, labels = make((2, classes), dtype=torch.float32)
    wide = student.detach().double().requires_grad_()
    exact, grad = (
        torch.autograd.grad(wsld_loss(s, t, labels, 4.0), s)[0]
        for s, t in ((wide, teacher.double()), (student, teacher)))
    soft_s, soft_t = (x.detach().div(4.0).softmax(1)
                      for x in (wide, teacher.double()))
    weight = wsld_weight(wide.detach(), teacher.double(), labels)
    torch.testing.assert_close(
        exact, (soft_s - soft_t) * weight.unsqueeze(1) * 4.0 / 2)
    error = (grad - exact).gather(1, labels.unsqueeze(1)).abs().max()
    assert error <= 1e-5 * exact.abs().max()


def test_classes_masked_in_both_networks_do_not_count():
    student, teacher, labels = make((6, 9))
    labels = labels % 6
    few = [x.detach()[:, :6].clone().requires_grad_()
           for x in (student, teacher)]
    masked = [x.detach().clone() for x in (student, teacher)]
    for x in masked:
        x[:, 6:] = -math.inf
    masked[0].requires_grad_()
    for y in (labels, torch.nn.functional.one_hot(labels, 9).double()):
        value, grad = value_and_rows(wsld_loss(*masked, y, 2.0), masked[0])
        expected, exact = value_and_rows(wsld_loss(*few, labels, 2.0), few[0])
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(grad[:, :6], exact)
        assert (grad[:, 6:] == 0).all()


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('weighting', ['wsld', 'drop_regularization'])
def test_an_ignored_row_may_hold_anything(bad, reduction, weighting):
    student, teacher, labels = make((5, 4, 3))
    labels[1] = -100
    expected, exact = value_and_rows(
        wsld_loss(student, teacher, labels, 2.0, reduction=reduction,
                  weighting=weighting).sum(), student)
    s, t = student.detach().clone(), teacher.clone()
    s[1], t[1, 0] = bad, bad
    s.requires_grad_()
    value, grad = value_and_rows(
        wsld_loss(s, t, labels, 2.0, reduction=reduction,
                  weighting=weighting).sum(), s)
    assert value == expected and torch.equal(grad, exact)


def test_a_teacher_under_inference_mode():
    student, teacher, labels = make((4, 6))
    with torch.inference_mode():
        inferred = teacher.clone()
    expected = value_and_rows(wsld_loss(student, teacher, labels), student)
    got = value_and_rows(wsld_loss(student, inferred, labels), student)
    assert got[0] == expected[0] and torch.equal(got[1], expected[1])


@pytest.mark.skipif(not hasattr(torch, 'func'), reason='torch < 2.0')
def test_transforms_of_torch_func():
    from torch.func import grad, jvp, vmap
    student, teacher, labels = make((4, 6))
    loss = wsld_loss(student, teacher, labels, 2.0)
    exact, = torch.autograd.grad(loss, student)
    student = student.detach()

    def of_student(s):
        return wsld_loss(s, teacher, labels, 2.0)

    torch.testing.assert_close(grad(of_student)(student), exact)
    tangent = torch.randn_like(student)
    value, along = jvp(of_student, (student, ), (tangent, ))
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(along, (exact * tangent).sum())
    rows = vmap(lambda s, t, y: wsld_loss(s[None], t[None], y[None], 2.0))(
        student, teacher, labels)
    torch.testing.assert_close(rows.mean(), loss.detach())


# ----------------------------------------------------------------- blocks
@pytest.mark.parametrize('numbers', [1, 150, 900])
@pytest.mark.parametrize('shape', [(9, 7), (3, 5, 4, 6), (4, 5, 2)])
@pytest.mark.parametrize('soft', [False, True])
def test_the_block_size_changes_nothing(monkeypatch, numbers, shape, soft):
    student, teacher, labels = make(shape, soft=soft)
    if not soft:
        labels.view(-1)[1] = -100
    expected = value_and_rows(wsld_loss(student, teacher, labels, 2.0),
                              student)
    monkeypatch.setattr(blocks, '_CPU_BLOCK', numbers)
    value, grad = value_and_rows(
        wsld_loss(student, teacher, labels, 2.0), student)
    assert value == pytest.approx(expected[0], rel=1e-13)
    torch.testing.assert_close(grad, expected[1], rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize('shape', [(2048, 1000), (256, 32000),
                                   (1, 19, 512, 512)])
def test_little_is_kept_beside_the_gradient(shape):
    student, teacher, labels = make(shape, dtype=torch.float32)
    size = student.numel() * student.element_size()
    wsld_loss(student, teacher, labels, 2.0).backward()
    student.grad = None
    with torch.profiler.profile(profile_memory=True) as profile:
        wsld_loss(student, teacher, labels, 2.0).backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            peak = max(peak, live)
    assert size <= peak <= 1.2 * size


# ---------------------------------------------------------------- compile
@pytest.mark.skipif(
    not hasattr(getattr(torch, 'compiler', None), 'is_compiling'),
    reason='this torch cannot tell that it compiles')
def test_compiled_code_refuses_labels_out_of_range():
    torch._dynamo.reset()
    compiled = torch.compile(wsld_loss, fullgraph=True, backend='aot_eager')
    student, teacher, labels = make((4, 6))
    expected = wsld_loss(student, teacher, labels)
    torch.testing.assert_close(compiled(student, teacher, labels), expected)
    for wrong in (6, 255, -1):
        bad = labels.clone()
        bad[2] = wrong
        with pytest.raises(RuntimeError, match=r'gt_labels must be in'):
            compiled(student, teacher, bad)


# ----------------------------------------------------------------- errors
GOOD = {'student': torch.zeros(2, 3), 'teacher': torch.zeros(2, 3),
        'gt_labels': torch.tensor([0, 2])}
BAD = [
    ({'student': [[0.0]]}, TypeError, 'student must be a tensor, got list'),
    ({'teacher': torch.zeros(2, 3).long()}, TypeError, 'teacher.*int64'),
    ({'student': torch.zeros(3), 'teacher': torch.zeros(3)}, ValueError,
     r'student must have shape \(N, C\)'),
    ({'teacher': torch.zeros(2, 4)}, ValueError,
     'same classes, got 3 and 4'),
    ({'teacher': torch.zeros(3, 3)}, ValueError, 'same shape'),
    ({'student': torch.zeros(2, 0), 'teacher': torch.zeros(2, 0)},
     ValueError, 'at least one class'),
    ({'gt_labels': torch.tensor([0, 3])}, ValueError,
     r'in \[0, 3\) or ignore_index=-100, got 3'),
    ({'gt_labels': torch.tensor([-1, 0])}, ValueError, 'got -1'),
    ({'gt_labels': torch.tensor([[0], [1]])}, ValueError,
     r'shape \(2,\).*got torch.int64 of shape \(2, 1\)'),
    ({'gt_labels': torch.zeros(2)}, ValueError,
     r'probabilities.*\(2, 3\), got torch.float32 of shape \(2,\)'),
    ({'gt_labels': torch.zeros(2, 3).long()}, ValueError, 'indices'),
    ({'gt_labels': torch.tensor([True, False])}, TypeError, 'bool'),
    ({'gt_labels': torch.tensor([[2.0, -1, 0], [0, 0, 1]])}, ValueError,
     'negative class probability, -1'),
    ({'reduction': 'batchmean'}, ValueError, "reduction.*'batchmean'"),
    ({'tau': 0.0}, ValueError, 'tau must be above 0, got 0.0'),
    ({'eps': -1e-7}, ValueError, 'eps must be at least 0'),
    ({'num_classes': 10}, ValueError, 'num_classes is 10.*3 classes'),
    ({'teacher': torch.zeros(2, 3, device='meta')}, ValueError, 'device'),
]


@pytest.mark.parametrize('change,error,match', BAD)
def test_bad_input_is_refused(change, error, match):
    assert wsld_loss(**GOOD).item() >= 0
    with pytest.raises(error, match=match):
        wsld_loss(**{**GOOD, **change})


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_any_integer_dtype_indexes(dtype):
    labels = GOOD['gt_labels'].to(dtype)
    assert wsld_loss(GOOD['student'], GOOD['teacher'], labels) == wsld_loss(
        **GOOD)
