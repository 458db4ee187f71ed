"""The loss's inputs and settings."""
import math
from functools import partial

import loss_tester
import oracle
import torch

from wsld_plugin.losses import WSLDLoss

from .cases import RIGHT, expect, judged


def laid_out(value, draw):
    """The same values in another order, with gaps, or not from the start."""
    return draw.choice([
        lambda: value,
        lambda: value.transpose(0, 1).contiguous().transpose(0, 1),
        lambda: torch.stack([value, value], -1)[..., 1],
        lambda: torch.cat([value.flatten()] * 2)[value.numel():].view(
            value.shape)
    ])() if value.dim() > 1 else value


def loss_inputs(draw, kind):
    """Settings, student, teacher and labels, and the index to ignore."""
    shape = (draw.randint(0, 4), draw.randint(1, 9),
             *(draw.randint(1, 3) for _ in range(draw.randint(0, 2))))
    seed, soft = draw.getrandbits(31), kind == 'probabilities'
    scale = 10**draw.uniform(-2, 2)
    student, teacher, labels = loss_tester.make(shape, seed, scale=scale,
                                                soft=soft)
    ignore = draw.choice([-100, -1, 255])
    student, teacher = (
        value.detach().to(draw.choice([*loss_tester.TOLERANCES])).clone()
        for value in (student, teacher))
    if not soft:
        one = torch.nn.functional.one_hot(labels, shape[1]).movedim(-1, 1)
        if kind == 'masked classes':
            out = (one.roll(1, 1) * (1 - one)).bool()
            student, teacher = (value.masked_fill(out, -math.inf)
                                for value in (student, teacher))
        if kind == 'ignored rows':
            gone = torch.rand(labels.shape) < 0.4
            student, teacher = (
                value.masked_fill(gone.unsqueeze(1), draw.choice(
                    [math.nan, math.inf, -math.inf, 0.0]))
                for value in (student, teacher))
            labels = labels.masked_fill(gone, ignore)
        kinds = [torch.int64, torch.int32, torch.int16, torch.int8,
                 torch.uint8]
        kinds = [kind for kind in kinds
                 if torch.equal(labels.to(kind).long(), labels)]
        labels = labels.to(draw.choice(kinds))
    settings = dict(
        tau=draw.choice([0.5, 1.0, 2, 7.5]), loss_weight=draw.choice([1, 2.5]),
        eps=draw.choice([0.0, 1e-7]), ignore_index=ignore,
        reduction=draw.choice(['none', 'mean', 'sum']))
    if draw.random() < 0.3:
        settings.update(weighting='uniform', eps=0.0)
    return settings, [laid_out(value, draw)
                      for value in (student, teacher, labels)], ignore


def right_loss(kind, draw):
    settings, (student, teacher, labels), ignore = loss_inputs(draw, kind)
    student = student.requires_grad_()
    value = WSLDLoss(**settings)(student, teacher, labels)
    value.sum().backward()
    tau, weight = settings['tau'], settings['loss_weight']
    w = 1.0 if 'weighting' in settings else None

    def row(s, t, y):
        s, t = ([max(z, -1e300) for z in x] for x in (s, t))
        return (0.0, [0.0] * len(s)) if y is None else oracle.row(
            s, t, y, tau, settings['eps'], w)

    exact, slopes = (weight * x for x in loss_tester.judge(
        row, student, teacher, labels, ignore))
    exact, rows = exact.flatten(), exact.numel()
    if settings['reduction'] == 'mean':
        count = max(1, rows if labels.is_floating_point() else
                    (labels.long() != ignore).sum().item())
        exact, slopes = exact / count, slopes / count
    got = value.detach().double().flatten()
    if settings['reduction'] != 'none':
        exact = exact.sum().view(1)
    unit = 2e-16 if student.dtype == teacher.dtype == torch.float64 else 1e-7
    top = max([1.0, *(abs(z) for x in (student, teacher)
                      for row in loss_tester.rows_of(x) for z in row
                      if math.isfinite(z))])
    # Rounding of logits that large, in the exponent of each probability.
    near = unit * (16 + 8 * top) * tau * weight
    bound = near * (exact.abs().max().item() / tau / weight + tau + top
                    if len(exact) else 0) * max(1, rows)
    expect(len(got) == len(exact) and ((got - exact).abs() <= bound).all(),
           f'{got.tolist()}, expected {exact.tolist()} by {bound}')
    grad = student.grad.double()
    half = loss_tester.TOLERANCES[student.dtype][1]
    bound = near + half * slopes.abs() + 6e-8
    expect(((grad - slopes).abs() <= bound).all(),
           f'gradient {grad.tolist()}, expected {slopes.tolist()}')
    return RIGHT


BAD_SETTINGS = [
    *(('tau', value) for value in (0, -1, math.nan, math.inf, '2', None)),
    *(('eps', value) for value in (-1, math.nan, 'x', None, [0])),
    *(('loss_weight', value) for value in (math.nan, 'x', None)),
    *(('reduction', value) for value in ('avg', None, 3, ['mean'])),
    *(('ignore_index', value) for value in (1.5, '0', None)),
    *(('num_classes', value) for value in (99, 0, 'x', 2.5)),
    *(('weighting', value) for value in ('x', None, {}, {'other': 1})),
]


def wrong_loss(kind, draw):
    settings, tensors, _ = loss_inputs(draw, 'indices')
    student, teacher, labels = tensors
    if kind == 'wrong setting':
        settings.update([draw.choice(BAD_SETTINGS)])
    elif kind == 'label out of range':
        labels = torch.cat([labels, labels[:1]]) if len(labels) else (
            torch.zeros(1, *labels.shape[1:]))
        student, teacher = (torch.randn(len(labels), *x.shape[1:])
                            for x in (student, teacher))
        labels = labels.long().clone()
        labels.view(-1)[draw.randrange(labels.numel())] = draw.choice(
            [student.shape[1], -2, 10**6, -2**62])
    elif kind == 'wrong labels':
        labels = draw.choice([
            torch.stack([labels] * 2, -1), torch.cat([labels, labels[:1] * 0,
                                             labels.new_zeros(
                                                 1, *labels.shape[1:])]),
            labels.bool(), labels.to(torch.complex64), labels.double(),
            labels.tolist(), None, labels.numpy(),
            student.double().softmax(1) - 2 if len(student) else None])
    else:
        bad = draw.choice([
            student[:, :1].expand(-1, 11, *student.shape[2:]), student.long(),
            student.bool(), student.to(torch.complex64), student[:, 0],
            student[:, :0], student.tolist(), None,
            torch.cat([student, student[:1] * 0, student.new_zeros(
                1, *student.shape[1:])])])
        student, teacher = draw.choice([(bad, teacher), (student, bad)])
    return judged((TypeError, ValueError),
                  lambda: WSLDLoss(**settings)(student, teacher, labels),
                  partial(expect, False))


def losses(folder):
    del folder
    return {
        **{kind: partial(right_loss, kind) for kind in (
            'indices', 'probabilities', 'ignored rows', 'masked classes')},
        **{kind: partial(wrong_loss, kind) for kind in (
            'wrong setting', 'label out of range', 'wrong labels',
            'wrong logits')}
    }
