"""WSLDLoss as MMRazor's distillers meet it."""
import pickle

import numpy as np
import pytest
import torch
from loss_tester import gradient, make, needs_compiler
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

from wsld_plugin.functional import wsld_loss
from wsld_plugin.losses import WSLDLoss


def logits(shape=(16, 10)):
    return make(shape, dtype=torch.float32)


@pytest.mark.parametrize('scope', ['mmengine', 'mmrazor', 'mmpretrain'])
def test_every_scope_builds_it_by_its_bare_name(scope):
    cfg = dict(type='WSLDLoss', tau=2, loss_weight=2.5)
    with DefaultScope.overwrite_default_scope(scope):
        registry = MODELS
        if scope == 'mmrazor':
            from mmrazor.registry import MODELS as registry
        elif scope == 'mmpretrain':
            from mmpretrain.registry import MODELS as registry
        assert type(registry.build(cfg)) is WSLDLoss


def test_it_passes_every_setting_on():
    student, teacher, labels = logits()
    labels[3] = 7
    settings = dict(tau=3, loss_weight=2.25, eps=0.5, reduction='sum',
                    ignore_index=7)
    got = WSLDLoss(**settings, num_classes=10)(
        student=student, teacher=teacher, gt_labels=labels)
    assert got == wsld_loss(student, teacher, labels, 3.0, 2.25, 0.5, 'sum',
                            7)
    for change in (dict(tau=2), dict(loss_weight=1), dict(eps=0),
                   dict(reduction='mean'), dict(ignore_index=-100),
                   dict(weighting='uniform', eps=0), dict(soft_loss='nkd'),
                   dict(transform='spherical'), dict(unlabelled='teacher')):
        assert WSLDLoss(**{**settings, **change})(student, teacher,
                                                  labels) != got
    parts = ConfigDict(weighting=dict(regularization=0.5, other=1.0),
                       soft_loss=dict(type='dkd', beta=8),
                       transform='standardize')
    loss = MODELS.build(dict(type='WSLDLoss', **parts))
    assert pickle.loads(pickle.dumps(loss))(
        student, teacher, labels) == wsld_loss(student, teacher, labels,
                                               **parts)
    assert type(loss.weighting) is type(loss.soft_loss) is dict
    assert "soft_loss={'type': 'dkd', 'beta': 8}, transf" in repr(loss)
    with pytest.raises(ValueError, match='num_classes is 1000'):
        WSLDLoss(num_classes=1000)(student, teacher, labels)


def test_numpys_numbers_are_numbers():
    loss = WSLDLoss(np.float32(2), np.float64(2.5), np.float32(0.5), 'sum',
                    np.int64(255), np.int32(10))
    assert repr(loss) == (
        "WSLDLoss(tau=2.0, loss_weight=2.5, eps=0.5, reduction='sum', "
        "ignore_index=255, num_classes=10, weighting='wsld', "
        "soft_loss='kl', transform=None, unlabelled='ignore')")
    for value in (loss.tau, loss.eps, loss.ignore_index, loss.num_classes):
        assert type(value) in (int, float)


@pytest.mark.parametrize('eps', [0.0, 1e-7])
@pytest.mark.parametrize('tau,loss_weight', [(1, 1), (2, 2.5), (4, 2.25)])
def test_mmrazor_computes_the_same(tau, loss_weight, eps):
    from mmrazor.models.losses import WSLD
    student, teacher, labels = logits((64, 100))
    theirs = WSLD(tau, loss_weight, 100)(student, teacher, labels)
    ours = WSLDLoss(tau, loss_weight, eps)(student, teacher, labels)
    # The 1e-7 is far below these cross-entropies; it decides for others.
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient(ours, student),
                               gradient(theirs, student),
                               rtol=1e-4, atol=1e-8)


def test_eps_decides_for_a_perfect_teacher():
    from mmrazor.models.losses import WSLD
    data = (torch.tensor([[16.0, 0.0]]), torch.tensor([[60.0, 0.0]]),
            torch.tensor([0]))
    theirs = WSLD(2, 1, 2)(*data).item()
    published = WSLDLoss(2, eps=1e-7)(*data).item()
    assert published == pytest.approx(theirs, rel=0.05)
    assert WSLDLoss(2)(*data).item() > 1.05 * published


@pytest.mark.parametrize('tau,loss_weight', [(1, 1), (2, 2.5), (4, 2.25)])
@pytest.mark.parametrize('soft_loss', ['kl', dict(type='dkd', beta=8)])
def test_uniform_is_mmrazors_distillation(tau, loss_weight, soft_loss):
    from mmrazor.models.losses import DKDLoss, KLDivergence
    student, teacher, labels = logits((64, 100))
    if soft_loss == 'kl':
        theirs = KLDivergence(tau, 'batchmean', loss_weight)(student, teacher)
    else:  # By its 'mean' it is the sum over the batch.
        theirs = DKDLoss(tau, 1, 8, loss_weight=loss_weight)(
            student, teacher, labels)
    ours = WSLDLoss(tau, loss_weight, weighting='uniform',
                    soft_loss=soft_loss)(student, teacher, labels)
    torch.testing.assert_close(gradient(ours, student),
                               gradient(theirs, student),
                               rtol=1e-5, atol=1e-8)
    # Our KL holds the teacher's entropy, theirs is the divergence.
    soft = (teacher / tau).softmax(1)
    entropy = -(soft * soft.log()).sum(1).mean() * tau**2 * loss_weight
    assert ours.item() == pytest.approx(
        (theirs + (soft_loss == 'kl') * entropy).item(), rel=1e-5)


def lose_on_a_gpu(rank, weighting):
    student, teacher, labels = make((16, 10), device='cuda')
    labels[3] = 255
    WSLDLoss(weighting=weighting)(student, teacher, labels)
    torch.cuda.synchronize()


# In a process of its own, as the device is of no use afterwards.
@needs_compiler
@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('weighting', ['wsld', 'uniform', 'entropy'])
def test_labels_out_of_range_fail_on_a_gpu(weighting):
    with pytest.raises(torch.multiprocessing.ProcessException):
        torch.multiprocessing.spawn(lose_on_a_gpu, (weighting, ))


@pytest.mark.parametrize('settings,error,match', [
    (dict(tau=0), ValueError, 'tau must be above 0, got 0'),
    (dict(tau=float('inf')), ValueError, 'tau must be finite, got inf'),
    (dict(tau='2'), TypeError, 'tau must be a number, got str'),
    (dict(loss_weight=None), TypeError, 'loss_weight'),
    (dict(eps=-1e-7), ValueError, 'eps must be at least 0'),
    (dict(reduction='batchmean'), ValueError, "'batchmean'"),
    (dict(ignore_index=1.5), TypeError, 'ignore_index'),
    (dict(num_classes=0), ValueError, 'num_classes must be at least 1'),
    (dict(weighting='kd'), ValueError, "'uniform'.*'drop_random'.*got 'kd'"),
    (dict(weighting=0.5), TypeError, 'weighting must be a string or a dict'),
    (dict(weighting=dict(other=1.0)), ValueError,
     r"keys \('regularization', 'other'\), got \('other',\)"),
    (dict(weighting=dict(regularization=1, other=1, rest=1)), ValueError,
     'rest'),
    (dict(weighting=dict(regularization='1', other=1)), TypeError,
     r"weighting\['regularization'\] must be a number, got str"),
    (dict(weighting=dict(regularization=1, other=-1)), ValueError,
     r"weighting\['other'\] must be at least 0, got -1"),
    (dict(weighting='uniform', eps=1e-7), ValueError, 'eps belongs to'),
    (dict(soft_loss='dist'), ValueError, "'kl', 'dkd', 'nkd'.*got 'dist'"),
    (dict(soft_loss=dict(beta=8)), ValueError, "'nkd'.*got None"),
    (dict(soft_loss=1), TypeError, 'soft_loss must be a string or a dict'),
    (dict(soft_loss=dict(type='dkd', gamma=1)), ValueError,
     r"setting of soft_loss 'dkd' must be one of \('alpha', .*got 'gamma'"),
    (dict(soft_loss=dict(type='nkd', gamma=-1)), ValueError,
     r"soft_loss\['gamma'\] must be at least 0, got -1"),
    (dict(transform='zscore'), ValueError, "'standardize'.*got 'zscore'"),
    (dict(unlabelled=True), ValueError, "'teacher', 'uniform'.*got True"),
])
def test_bad_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        WSLDLoss(**settings)
