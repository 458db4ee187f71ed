"""The WSLD maths against an independent oracle, closed forms and itself."""
from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from wsld_plugin.functional import fused as fused_module
from wsld_plugin.functional import (
    log_cross_entropy,
    wsld_loss,
    wsld_loss_reference,
    wsld_weight,
)
from wsld_plugin.functional import wsld as wsld_module

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle


@functools.wraps(wsld_loss)
def compiled_path(*args, **kwargs):
    """`wsld_loss` as `torch.compile` finds it, without the compiler."""
    with mock.patch.object(wsld_module, 'fused_wsld_loss',
                           wsld_module.compiled_wsld_loss):
        return wsld_loss(*args, **kwargs)


PATHS = [wsld_loss, wsld_loss_reference, compiled_path]
SHAPES = [(5, 7), (1, 2), (3, 1000), (2, 4, 3, 5), (3, 6, 2), (4, 5, 1, 1, 2)]


def make(shape, seed=0, dtype=torch.float64, scale=3.0, soft=False):
    """Random logits of a student and a teacher, and labels for them."""
    gen = torch.Generator().manual_seed(seed)
    student, teacher = (
        (scale * torch.randn(shape, generator=gen, dtype=torch.float64)).to(
            dtype) for _ in range(2))
    if soft:
        labels = torch.rand(
            shape, generator=gen, dtype=torch.float64).softmax(1)
    else:
        labels = torch.randint(
            shape[1], (shape[0], *shape[2:]), generator=gen)
    return student.requires_grad_(), teacher, labels


def rows_of(tensor):
    """``(N, C, *)`` as a list of rows of Python floats."""
    return tensor.detach().double().movedim(1, -1).reshape(
        -1, tensor.shape[1]).tolist()


def oracle_rows(student, teacher, labels, tau, eps=0.0, ignore=-100):
    """Losses and gradients, row by row; zero where ignored."""
    classes = student.shape[1]
    if labels.is_floating_point():
        targets = rows_of(labels)
    else:
        targets = [None if y == ignore else oracle.one_hot(y, classes)
                   for y in labels.flatten().tolist()]
    losses, grads = [], []
    for s, t, y in zip(rows_of(student), rows_of(teacher), targets):
        loss, grad = (0.0, [0.0] * classes) if y is None else oracle.row(
            s, t, y, tau, eps)
        losses.append(loss)
        grads.append(grad)
    return (torch.tensor(losses, dtype=torch.float64),
            torch.tensor(grads, dtype=torch.float64), targets)


def value_and_rows(loss, student):
    grad, = torch.autograd.grad(loss, student)
    return loss.item(), torch.tensor(rows_of(grad), dtype=torch.float64)


# ---------------------------------------------------------------- oracle
@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('tau,eps', [(1.0, 0.0), (2.0, 1e-7), (3.7, 0.0)])
def test_value_and_gradient_match_the_oracle(path, shape, soft, tau, eps):
    student, teacher, labels = make(shape, soft=soft)
    losses, grads, _ = oracle_rows(student, teacher, labels, tau, eps)
    value, grad = value_and_rows(
        path(student, teacher, labels, tau, 2.5, eps), student)
    assert value == pytest.approx(2.5 * losses.mean().item(), rel=1e-12)
    torch.testing.assert_close(
        grad, 2.5 * grads / len(losses), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
def test_reductions_leave_ignored_rows_out(path, reduction):
    student, teacher, labels = make((4, 5, 3, 2))
    labels[0, 0, 0] = labels[2, 1] = 255
    losses, grads, targets = oracle_rows(
        student, teacher, labels, 2.0, ignore=255)
    count = sum(t is not None for t in targets)
    assert 0 < count < len(targets)
    loss = path(student, teacher, labels, 2.0, reduction=reduction,
                ignore_index=255)
    if reduction == 'none':
        assert loss.shape == labels.shape
        torch.testing.assert_close(loss.flatten(), losses)
        loss = loss.sum()
    scale = 1 / count if reduction == 'mean' else 1.0
    value, grad = value_and_rows(loss, student)
    assert value == pytest.approx(scale * losses.sum().item(), rel=1e-12)
    torch.testing.assert_close(grad, scale * grads, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('elements', [1, 150, 900, 10**6])
@pytest.mark.parametrize('shape', [(9, 7), (3, 5, 4, 6), (4, 5, 2)])
@pytest.mark.parametrize('soft', [False, True])
def test_the_block_size_changes_nothing(monkeypatch, elements, shape, soft):
    student, teacher, labels = make(shape, soft=soft)
    expected = value_and_rows(
        wsld_loss_reference(student, teacher, labels, 2.0), student)
    monkeypatch.setattr(fused_module, '_CPU_SCRATCH_PER_THREAD', elements)
    monkeypatch.setattr(fused_module, '_SCRATCH_SHARE', 1.0)
    monkeypatch.setattr(fused_module, '_LEAST_SCRATCH', 0)
    value, grad = value_and_rows(
        wsld_loss(student, teacher, labels, 2.0), student)
    assert value == pytest.approx(expected[0], rel=1e-13)
    torch.testing.assert_close(grad, expected[1], rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize('soft', [False, True])
def test_memory_layouts_agree(soft):
    student, teacher, labels = make((2, 5, 4, 6), soft=soft)
    expected = value_and_rows(wsld_loss(student, teacher, labels), student)
    for view in (lambda x: x.to(memory_format=torch.channels_last),
                 lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)):
        s = view(student.detach()).requires_grad_()
        got = value_and_rows(wsld_loss(s, view(teacher), labels), s)
        assert got[0] == pytest.approx(expected[0], rel=1e-13)
        torch.testing.assert_close(got[1], expected[1])


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


@pytest.mark.parametrize('path', PATHS)
def test_one_class_carries_nothing(path):
    student = torch.randn(3, 1, requires_grad=True)
    loss = path(student, torch.randn(3, 1), torch.zeros(3).long(), 9.0)
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


# ------------------------------------------------------------- properties
@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('path', PATHS)
def test_properties_of_random_draws(path, seed):
    scale = [0.01, 1.0, 10.0, 60.0][seed % 4]
    student, teacher, labels = make((6, 9), seed, scale=scale)
    student = student.detach()
    tau = [1.0, 2.0, 4.0, 7.5, 0.5][seed % 5]
    rows = path(student, teacher, labels, tau, reduction='none')
    close = {'rtol': 1e-9, 'atol': 1e-12}

    shift = torch.randn(6, 1, dtype=torch.float64) * 50
    torch.testing.assert_close(
        path(student + shift, teacher - shift, labels, tau,
             reduction='none'), rows, **close)
    order = torch.randperm(9)
    torch.testing.assert_close(
        path(student[:, order], teacher[:, order], order.argsort()[labels],
             tau, reduction='none'), rows, **close)
    batch = torch.randperm(6)
    torch.testing.assert_close(
        path(student[batch], teacher[batch], labels[batch], tau,
             reduction='none'), rows[batch], **close)
    torch.testing.assert_close(
        path(student.repeat(3, 1), teacher.repeat(3, 1), labels.repeat(3),
             tau), rows.mean(), **close)
    one_hot = torch.nn.functional.one_hot(labels, 9).double()
    torch.testing.assert_close(
        path(student, teacher, one_hot, tau, reduction='none'), rows,
        **close)
    keep = torch.rand(6) < 0.6
    masked = torch.where(keep, labels, torch.tensor(-100))
    torch.testing.assert_close(
        path(student, teacher, masked, tau, reduction='sum'),
        path(student[keep], teacher[keep], labels[keep], tau,
             reduction='sum'), **close)
    dense = path(student.T.reshape(1, 9, 2, 3), teacher.T.reshape(1, 9, 2, 3),
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
@pytest.mark.parametrize('path', PATHS)
def test_gradcheck_with_the_weight_held(path, shape, soft):
    student, teacher, labels = make(shape, soft=soft, scale=1.0)

    def soft_label_loss(s):
        # The weight is a constant to autograd; dividing it out leaves a
        # function whose numerical derivative is the analytical one.
        rows = path(s, teacher, labels, 2.0, reduction='none')
        return rows / wsld_weight(s, teacher, labels)

    assert torch.autograd.gradcheck(soft_label_loss, student)
    # torch.compile does not differentiate twice.
    if path is not compiled_path:
        assert torch.autograd.gradgradcheck(soft_label_loss, student)


def test_teacher_and_weight_get_no_gradient():
    for path in PATHS:
        student, teacher, labels = make((4, 3))
        teacher.requires_grad_()
        path(student, teacher, labels, 2.0).backward()
        assert teacher.grad is None
        assert not path(student.detach(), teacher, labels).requires_grad
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


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('size', [1e2, 1e4])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_at_huge_logits(path, size, soft, dtype):
    student, teacher, labels = make((64, 5), 3, dtype, size, soft)
    with torch.no_grad():
        teacher[:8] = student[:8]
        student[8:16, 0] = size * 3
        teacher[8:16, 0] = size * 2
    loss = path(student, teacher, labels, 2.0)
    grad, = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and torch.isfinite(grad).all()
    exact, exact_grad, _ = oracle_rows(student, teacher, labels, 2.0)
    assert loss.item() == pytest.approx(exact.mean().item(), rel=1e-5)
    torch.testing.assert_close(
        torch.tensor(rows_of(grad)).double(), exact_grad / 64, rtol=1e-3,
        atol=1e-6)


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('shape', [(0, 4), (0, 4, 3, 3), (3, 4), (2, 4, 2, 2)])
def test_nothing_that_counts_gives_zero(path, reduction, shape):
    student = torch.randn(shape, requires_grad=True)
    labels = torch.full((shape[0], *shape[2:]), -100)
    loss = path(student, torch.randn(shape), labels, 2.0,
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


# dtype: relative error of the loss, error of the gradient over its largest
# entry. Half-precision gradients are stored in half precision.
TOLERANCES = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (2e-6, 1e-3),
    torch.bfloat16: (2e-6, 8e-3),
}


@pytest.mark.parametrize('dtype', list(TOLERANCES))
@pytest.mark.parametrize('shape', [(8, 100), (2, 19, 4, 5)])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('autocast', [False, True])
def test_precision(path, dtype, shape, soft, autocast):
    student, teacher, labels = make(shape, 1, dtype, soft=soft)
    losses, grads, _ = oracle_rows(student, teacher, labels, 2.0)
    # float32 rounds the soft labels; float64 logits keep them exact.
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss = path(student, teacher, labels, 2.0)
    assert loss.dtype == (torch.float64
                          if dtype == torch.float64 else torch.float32)
    value, grad = value_and_rows(loss, student)
    rel, rel_grad = TOLERANCES[dtype]
    assert value == pytest.approx(losses.mean().item(), rel=rel)
    exact = grads / len(losses)
    assert (grad - exact).abs().max() <= rel_grad * exact.abs().max()


def test_a_student_in_half_precision_meets_a_teacher_in_float32():
    student, teacher, labels = make((8, 10), dtype=torch.bfloat16)
    teacher = teacher.float()
    loss = wsld_loss(student, teacher, labels, 2.0)
    losses, _, _ = oracle_rows(student, teacher, labels, 2.0)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=2e-6)
    loss.backward()
    assert student.grad.dtype == torch.bfloat16


# ----------------------------------------------------------------- memory
@pytest.mark.parametrize('shape', [(256, 1000), (64, 8000),
                                   (1, 19, 128, 256)])
def test_one_tensor_of_the_logits_size_is_kept(shape):
    student, teacher, labels = make(shape, dtype=torch.float32)
    size = student.numel() * student.element_size()
    wsld_loss(student, teacher, labels, 2.0).backward()
    student.grad = None
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = wsld_loss(student, teacher, labels, 2.0)
        loss.backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            peak = max(peak, live)
    assert size <= peak <= 1.15 * size


# ---------------------------------------------------------------- compile
@pytest.mark.skipif(
    not hasattr(getattr(torch, 'compiler', None), 'is_compiling'),
    reason='this torch cannot tell that it compiles')
@pytest.mark.parametrize('soft', [False, True])
def test_traces_without_graph_breaks(soft):
    # 'aot_eager' runs the tracer and autograd's partitioner but needs no
    # C++ compiler.
    torch._dynamo.reset()
    compiled = torch.compile(wsld_loss, fullgraph=True, backend='aot_eager')
    student, teacher, labels = make((4, 6, 2, 2), soft=soft)
    expected = value_and_rows(
        wsld_loss(student, teacher, labels, 2.0, 2.5), student)
    value, grad = value_and_rows(
        compiled(student, teacher, labels, 2.0, 2.5), student)
    assert value == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(grad, expected[1])


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
    ({'num_classes': 10}, ValueError, 'num_classes is 10.*3 classes'),
    ({'teacher': torch.zeros(2, 3, device='meta')}, ValueError, 'device'),
]


@pytest.mark.parametrize('change,error,match', BAD)
@pytest.mark.parametrize('path', PATHS)
def test_bad_input_is_refused(path, change, error, match):
    assert path(**GOOD).item() >= 0
    with pytest.raises(error, match=match):
        path(**{**GOOD, **change})


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_any_integer_dtype_indexes(dtype):
    labels = GOOD['gt_labels'].to(dtype)
    assert wsld_loss(GOOD['student'], GOOD['teacher'], labels) == wsld_loss(
        **GOOD)
