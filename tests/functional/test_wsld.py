"""WSLD: what every loss has to pass, and what only its formula promises."""
import itertools
import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from loss_tester import LossTester, gradient, make

from wsld_plugin.functional import blocks, wsld_loss, wsld_weight
from wsld_plugin.losses import WSLDLoss


class TestWSLD(LossTester):

    def build(self, **settings):
        return WSLDLoss(tau=2.0, **settings)

    def exact(self, student, teacher, target):
        return oracle.row(student, teacher, target, 2.0)

    def smooth(self, loss, student, teacher, labels):
        # The weight is a constant to autograd; dividing it out leaves a
        # function whose numerical derivative is the analytical one.
        return loss(student, teacher, labels) / wsld_weight(
            student, teacher, labels)


def test_closed_forms():
    label = torch.tensor([0])
    equal = torch.tensor([[1.0, 3.0, -2.0]])
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    weights = [wsld_weight(s, t, label).item()
               for s, t in ((equal, equal), (equal, sure), (sure, equal))]
    assert weights == pytest.approx([1 - 1 / math.e, 1, 0], rel=1e-6)
    # Two classes, p_s = 3/4, p_t = 1/2 on the label: CE 0.28768 and 0.69315.
    student = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)
    w = 1 - math.exp(-math.log(4 / 3) / math.log(2))
    loss = wsld_loss(student, torch.zeros(1, 2), label)
    assert loss.item() == pytest.approx(w * math.log(16 / 3) / 2, rel=1e-6)
    torch.testing.assert_close(gradient(loss, student),
                               torch.tensor([[w * 0.25, -w * 0.25]]))


@pytest.mark.parametrize('seed', range(20))
def test_properties_of_random_draws(seed):
    scale = [0.01, 1.0, 10.0, 60.0][seed % 4]
    tau = [1.0, 2.0, 4.0, 7.5, 0.5][seed % 5]
    student, teacher, labels = make((6, 9), seed, scale=scale)
    student = student.detach()

    def loss(s, t, y, reduction='none'):
        return wsld_loss(s, t, y, tau, reduction=reduction)

    rows = loss(student, teacher, labels)
    shift = torch.randn(6, 1, dtype=torch.float64) * 50
    order, batch = torch.randperm(9), torch.randperm(6)
    keep = torch.rand(6) < 0.6
    masked = torch.where(keep, labels, -100)
    dense = (student.T.reshape(1, 9, 2, 3), teacher.T.reshape(1, 9, 2, 3),
             labels.reshape(1, 2, 3))
    for got, expected in (
        (loss(student + shift, teacher - shift, labels), rows),
        (loss(student[:, order], teacher[:, order], order.argsort()[labels]),
         rows),
        (loss(student[batch], teacher[batch], labels[batch]), rows[batch]),
        (loss(student.repeat(3, 1), teacher.repeat(3, 1), labels.repeat(3),
              'mean'), rows.mean()),
        (loss(student, teacher, F.one_hot(labels, 9).double()), rows),
        (loss(student, teacher, masked, 'sum'), rows[keep].sum()),
        (loss(*dense).flatten(), rows),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('seed', range(10))
def test_weight_is_a_share_and_monotone(seed):
    student, teacher, labels = make((50, 6), seed, torch.float32, scale=8.0)
    student = student.detach()
    weight = wsld_weight(student, teacher, labels)
    assert weight.min() >= 0 and weight.max() <= 1
    up = F.one_hot(labels, 6) * 0.5
    assert (wsld_weight(student + up, teacher, labels) <= weight).all()
    assert (wsld_weight(student, teacher + up, labels) >= weight).all()


@pytest.mark.parametrize('margin_t,margin_s',
                         itertools.product([10, 20, 40, 60, 80, 100],
                                           repeat=2))
@pytest.mark.parametrize('classes', [2, 100, 1000])
def test_weight_is_exact_for_confident_models(margin_t, margin_s, classes):
    label = classes // 2
    student, teacher = torch.zeros(2, 1, classes)
    student[0, label], teacher[0, label] = margin_s, margin_t
    one_hot = oracle.one_hot(label, classes)
    s, t = student[0].tolist(), teacher[0].tolist()
    exact = oracle.weight(s, t, one_hot)
    for y in (torch.tensor([label]), torch.tensor([one_hot])):
        got = wsld_weight(student, teacher, y).item()
        assert got == pytest.approx(exact, rel=3e-5, abs=1e-37)
        loss = wsld_loss(student, teacher, y, 64.0).item()
        assert loss / oracle.soft_loss(s, t, 64.0) == pytest.approx(
            exact, rel=3e-5, abs=1e-18)


@pytest.mark.parametrize('n,classes', [(64, 1000), (8, 100_000),
                                       (4, 1_000_000)])
def test_the_labels_own_entry_keeps_its_digits(device, n, classes):
    student, teacher, labels = make((n, classes), 0, torch.float32,
                                    device=device)
    grad = gradient(wsld_loss(student, teacher, labels, 4.0), student)
    s, t = student.detach().double(), teacher.double()
    factor = 4 / n * wsld_weight(s, t, labels).unsqueeze(1)
    exact = ((s / 4).softmax(1) - (t / 4).softmax(1)) * factor
    own = (grad - exact).gather(1, labels.unsqueeze(1))
    assert own.abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize('numbers', [1, 50, 150, 10**6])
@pytest.mark.parametrize('shape', [(9, 7), (3, 5, 4, 6), (4, 5, 2)], ids=str)
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_the_block_size_changes_nothing(monkeypatch, numbers, shape, soft,
                                        dtype):
    student, teacher, labels = make(shape, dtype=dtype, soft=soft)
    if not soft:
        labels[1:2] = -100
    answers = []
    for size in (10**9, numbers):
        monkeypatch.setattr(blocks, '_CPU_BLOCK', size)
        loss = wsld_loss(student, teacher, labels, 2.0, reduction='none')
        answers.append((loss, gradient(loss.sum(), student)))
    torch.testing.assert_close(*answers, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('shape', [(2048, 2000), (64, 40000),
                                   (1, 19, 512, 512)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_one_tensor_of_the_logits_size_is_kept(shape, dtype):
    student, teacher, labels = make(shape, dtype=dtype)
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
    # Besides the gradient a few blocks in float32.
    assert size <= peak <= 1.2 * size + 4 * 4 * blocks._CPU_BLOCK


@pytest.mark.parametrize('change,error,match', [
    ({'student': [[0.0]]}, TypeError, 'student must be a tensor, got list'),
    ({'teacher': torch.zeros(2, 3).long()}, TypeError, 'teacher.*int64'),
    ({'student': torch.zeros(3), 'teacher': torch.zeros(3)}, ValueError,
     r'student must have shape \(N, C\)'),
    ({'teacher': torch.zeros(2, 4)}, ValueError,
     r'same shape.*\(2, 3\) and \(2, 4\)'),
    ({'student': torch.zeros(2, 0), 'teacher': torch.zeros(2, 0)},
     ValueError, 'at least one class'),
    ({'gt_labels': torch.tensor([0, 3])}, ValueError,
     r'in \[0, 3\) or ignore_index=-100, got 3'),
    ({'gt_labels': torch.tensor([[0], [1]])}, ValueError,
     r'shape \(2,\).*got torch.int64 of shape \(2, 1\)'),
    ({'gt_labels': torch.zeros(2)}, ValueError,
     r'probabilities.*\(2, 3\), got torch.float32 of shape \(2,\)'),
    ({'gt_labels': torch.tensor([True, False])}, TypeError, 'bool'),
    ({'gt_labels': torch.tensor([[2.0, -1, 0], [0, 0, 1]])}, ValueError,
     'negative class probability, -1'),
    ({'gt_labels': torch.tensor([[1.0, 1, 0], [0, 0, 1]])}, ValueError,
     r'multi-label \(sigmoid\) head.*got 2'),
    ({'num_classes': 10}, ValueError, 'num_classes is 10.*3 classes'),
    ({'teacher': torch.zeros(2, 3, device='meta')}, ValueError, 'device'),
    # More of these in tests/losses.
    ({'tau': True}, TypeError, 'tau must be a number, got bool'),
])
def test_bad_input_is_refused(change, error, match):
    good = {'student': torch.zeros(2, 3), 'teacher': torch.zeros(2, 3),
            'gt_labels': torch.tensor([0, 2])}
    assert wsld_loss(**good).item() >= 0
    with pytest.raises(error, match=match):
        wsld_loss(**{**good, **change})


@pytest.mark.parametrize('dtype,label', [
    (torch.uint8, 156), (torch.uint8, 255), (torch.int8, 100),
    (torch.int16, 299), (torch.int32, 0)])
@pytest.mark.parametrize('ignore_index', [-100, -1])
def test_narrow_labels_do_not_wrap_around(dtype, label, ignore_index):
    student, teacher = (torch.randn(3, 300).double() for _ in range(2))
    wide = torch.tensor([label, 7, label])
    rows, expected = (
        wsld_loss(student, teacher, labels, 2.0, reduction='none',
                  ignore_index=ignore_index)
        for labels in (wide.to(dtype), wide))
    assert torch.equal(rows, expected) and (rows > 0).all()


def test_a_label_masked_in_both_networks_is_finite():
    student, teacher = (torch.randn(2, 4) for _ in range(2))
    student[0, 1] = teacher[0, 1] = -float('inf')
    student.requires_grad_()
    index = torch.tensor([1, 2])
    one_hot = torch.nn.functional.one_hot(index, 4).float()
    one_hot[1] = 0  # What a mixup without shares leaves.
    for labels in (index, one_hot):
        loss = wsld_loss(student, teacher, labels, 2.0)
        grad, = torch.autograd.grad(loss, student)
        assert loss.isfinite() and grad.isfinite().all()


def test_half_soft_labels_under_autocast():
    student, teacher = (torch.randn(4, 5) for _ in range(2))
    labels = torch.rand(4, 5).softmax(1).half()
    with torch.autocast('cpu', torch.bfloat16):
        got = wsld_loss(student, teacher, labels)
    torch.testing.assert_close(got, wsld_loss(student, teacher, labels))
