"""Losses, transforms, weights, labels: each with each of the others."""
import oracle
import pytest
import torch
from loss_tester import LossTester, both, gradient, judge, make

from wsld_plugin.functional import wsld_loss
from wsld_plugin.losses import WSLDLoss

DKD = dict(type='dkd', alpha=0.5, beta=8.0)
LOSSES = ['kl', 'dkd', DKD, 'nkd', dict(type='nkd', gamma=0.7)]
TRANSFORMS = [None, 'standardize', 'spherical']


class Parts(LossTester):
    soft_loss, transform = 'kl', None
    # What comes before and after any loss: TestWSLD has these.
    test_labels_out_of_range_are_refused = None
    test_two_processes_get_the_gradient_of_one = None

    def build(self, **settings):
        return WSLDLoss(2.0, weighting='uniform', soft_loss=self.soft_loss,
                        transform=self.transform, **settings)

    def exact(self, *row):
        return oracle.row(*row, 2.0, w=1.0, loss=self.soft_loss,
                          transform=self.transform)


class TestDKD(Parts):
    soft_loss = DKD


class TestNKDStandardized(Parts):
    soft_loss, transform = 'nkd', 'standardize'


class TestSpherical(Parts):
    transform = 'spherical'


del Parts


@pytest.mark.parametrize('soft_loss', LOSSES, ids=str)
@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('weighting', [
    'wsld', 'uniform', 'entropy', 'drop_regularization',
    'only_regularization', dict(regularization=0.25, other=1.5)], ids=str)
@pytest.mark.parametrize('unlabelled', ['ignore', 'teacher', 'uniform'])
@pytest.mark.parametrize('shape,soft', [
    ((30, 4), False), ((3, 4, 2, 2), False), ((16, 4), True), ((9, 2), False)])
def test_each_combination_is_the_oracles(soft_loss, transform, weighting,
                                         unlabelled, shape, soft):
    student, teacher, labels = make(shape, soft=soft)
    if not soft:
        labels[::2] = 255
        labels = labels.to(torch.uint8)
    eps = 0.2 * (weighting == 'wsld')

    def exact(s, t, y):
        certain = y is None and unlabelled == 'uniform'
        gone = y is None and unlabelled == 'ignore'
        y = y or oracle.one_hot(t.index(max(t)), shape[1])
        kind = oracle.is_regularization(s, t, y, 3.0)
        w = 0.0 if gone else 1.0 if certain else dict(
            wsld=None, uniform=1.0, entropy=oracle.entropy_weight(s, t),
            drop_regularization=1.0 - kind, only_regularization=1.0 * kind,
        ).get(str(weighting), 0.25 if kind else 1.5)
        return oracle.row(s, t, y, 3.0, eps, w, soft_loss, transform)

    values, grads = judge(exact, student, teacher, labels, 255)
    count = (labels != 255).sum() if unlabelled == 'ignore' and not soft else (
        values.numel())
    loss, grad = both(
        lambda *data: wsld_loss(*data, 3.0, 2.5, eps, 'mean', 255, None,
                                weighting, soft_loss, transform, unlabelled),
        student, teacher, labels)
    torch.testing.assert_close(loss, values.sum() * 2.5 / count, rtol=1e-11,
                               atol=0)
    torch.testing.assert_close(grad, grads * 2.5 / count, rtol=1e-9,
                               atol=1e-13)


@pytest.mark.parametrize('soft_loss', LOSSES, ids=str)
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_extremes_stay_finite(soft_loss, transform):
    student, teacher, labels = make((8, 5), dtype=torch.float16, scale=2e4)
    with torch.no_grad():
        student[:2] = 7  # All equal; then one that both have masked.
        student[2, 1] = teacher[2, 1] = -torch.inf
        teacher[3], labels[2], labels[3:] = 0.1, 1, -100
    for tau in (0.01, 2.0, 1e3):
        for classes in (5, 2, 1):
            s = student.detach()[:, :classes].requires_grad_()
            loss = wsld_loss(
                s, teacher[:, :classes], labels.clamp(max=classes - 1), tau,
                soft_loss=soft_loss, transform=transform, unlabelled='teacher')
            grad = gradient(loss * 1e-6, s)
            assert loss.isfinite() and grad.isfinite().all()
            assert not transform or (grad[:2] == 0).all()
