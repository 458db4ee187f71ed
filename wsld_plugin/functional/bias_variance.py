"""Bias and variance of the cross-entropy error over training runs."""
from __future__ import annotations

from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from .inputs import check_inputs, has_class_indices

# float32 probabilities of a thousand classes add up to 1 this closely.
_SUM_TOLERANCE = 1e-4


class BiasVariance(NamedTuple):
    """Parts of each sample's expected error, all ``(N,)``, float64, nats.

    ``error = noise + bias + distillation + variance``.
    """

    error: Tensor  #: Mean cross-entropy of the runs.
    noise: Tensor  #: Entropy of the label, 0 for class indices.
    #: KL divergence from the label to the mean prediction (of direct training
    #: where a reference is given).
    bias: Tensor
    #: Mean KL divergence from the mean prediction to the runs'.
    variance: Tensor
    #: What distillation adds to the bias; negative where it lowers the bias,
    #: 0 without a reference.
    distillation: Tensor


class Jackknife(NamedTuple):
    """What :func:`jackknife` returns, both shaped like the statistic."""

    mean: Tensor  #: The estimate, freed of its bias of order 1 / runs.
    standard_error: Tensor  #: Of the estimate, over runs.


@torch.no_grad()
def bias_variance(logp: Tensor,
                  gt_labels: Tensor,
                  *,
                  reference: Optional[Tensor] = None) -> BiasVariance:
    r"""Decompose each sample's cross-entropy error over training runs.

    With the normalised geometric mean of the runs' predictions,
    :math:`\bar y = \exp(E_D[\log \hat y]) / Z`,

    .. math::
        E_D[-y \log \hat y] = \underbrace{-y \log y}_{noise}
        + \underbrace{KL(y, \bar y)}_{bias}
        + \underbrace{E_D KL(\bar y, \hat y)}_{variance}.

    For distilled runs, with ``reference`` from direct training, the bias is
    that of direct training and :math:`y \log(\bar y_{ce} / \bar y_{kd})` is
    kept apart. Samples stand alone: a large set may be given part by part.

    Args:
        logp: Log-probabilities ``(runs, N, C)``, finite, any floating dtype.
            They are normalised again in float64, so logits do as well.
        gt_labels: Class indices ``(N,)`` of an integer dtype, or class
            probabilities ``(N, C)`` that add up to 1.
        reference: Mean over the runs of direct training of their
            log-probabilities, ``(N, C)``, normalised or not.

    Returns:
        The parts, each ``(N,)`` in float64. The variance of few runs is too
        small, by 1 / runs on average, and the bias too large by the same
        amount; :func:`jackknife` corrects both.

    Source:
        Heskes, "Bias/Variance Decompositions for Likelihood-Based
        Estimators", 1998; with distillation arXiv 2102.00650.

    Example:
        >>> import torch
        >>> logp = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> parts = bias_variance(logp, torch.tensor([0]))
        >>> [round(part.item(), 4) for part in parts]  # bias is ln 2
        [0.9163, 0.0, 0.6931, 0.2231, 0.0]
    """
    _check_predictions('logp', logp, 3, '(runs, N, C)')
    if not logp.shape[0]:
        raise ValueError('logp must hold at least one run, got shape '
                         f'{tuple(logp.shape)}')
    mean_logp = logp.double().log_softmax(-1).mean(0)
    y = _distributions(gt_labels, mean_logp)
    log_sum = mean_logp.logsumexp(1)
    noise = torch.special.entr(y).sum(1)
    # KL(y, q) of a normalised q is the cross-entropy less the entropy.
    cross = (y * (log_sum.unsqueeze(1) - mean_logp)).sum(1)
    direct = cross
    if reference is not None:
        _check_predictions('reference', reference, 2, '(N, C)')
        if reference.shape != mean_logp.shape:
            raise ValueError('reference must have shape '
                             f'{tuple(mean_logp.shape)}, got '
                             f'{tuple(reference.shape)}')
        direct = -(y * reference.to(mean_logp).log_softmax(1)).sum(1)
    # The mean's KL divergence to the runs: the geometric mean's lack of 1.
    # Rounding may leave it a hair below 0.
    variance = (-log_sum).clamp(min=0)
    error, bias = -(y * mean_logp).sum(1), (direct - noise).clamp(min=0)
    return BiasVariance(error, noise, bias, variance, cross - direct)


def jackknife(statistic: Callable[[list[int]], Tensor],
              runs: int) -> Jackknife:
    r"""Jackknife mean and standard error of a statistic over runs.

    With :math:`\theta` from all R runs and :math:`\theta_{-i}` without run
    i, the mean is :math:`R\theta - (R - 1) \overline{\theta_{-i}}` and the
    squared standard error :math:`\frac{R - 1}{R} \sum_i (\theta_{-i} -
    \overline{\theta_{-i}})^2`. For a mean over runs both are the usual ones.
    Corrected parts of :func:`bias_variance` still add up to the error.

    Args:
        statistic: Called with the indices of the runs to use, ascending;
            returns a floating point tensor, of one shape at every call.
            Runs that belong together (one data split, with and without
            distillation) are left out together by using the same indices.
        runs: Number of runs, at least 2.

    Returns:
        Mean and standard error, in float64.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
        chapters 10 and 11.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 6.0])
        >>> mean, error = jackknife(lambda kept: x[kept].mean(), 3)
        >>> round(mean.item(), 4), round(error.item(), 4)
        (3.0, 1.5275)
    """
    if runs < 2:
        raise ValueError(f'runs must be at least 2, got {runs}')
    every = list(range(runs))
    whole = statistic(every).double()
    left_out = torch.stack(
        [statistic(every[:i] + every[i + 1:]).double() for i in every])
    # Around the whole, so that equal replicas give exactly it and 0.
    shift = left_out - whole
    spread = shift - shift.mean(0)
    return Jackknife(
        mean=whole - (runs - 1) * shift.mean(0),
        standard_error=((runs - 1) / runs * spread.square().sum(0)).sqrt())


def _check_predictions(name: str, logp: Tensor, dims: int,
                       shape: str) -> None:
    if not isinstance(logp, Tensor) or not logp.is_floating_point():
        got = getattr(logp, 'dtype', type(logp).__name__)
        raise TypeError(f'{name} must be a float tensor, got {got}')
    if logp.dim() != dims or not logp.shape[-1]:
        raise ValueError(f'{name} must have shape {shape}, got '
                         f'{tuple(logp.shape)}')
    if not torch.isfinite(logp).all():
        raise ValueError(f'{name} must be finite; log_softmax of the logits '
                         'is, the logarithm of a softmax need not be')


def _distributions(gt_labels: Tensor, logp: Tensor) -> Tensor:
    """Labels as float64 distributions ``(N, C)``."""
    if isinstance(gt_labels, Tensor):
        gt_labels = gt_labels.to(logp.device)
    check_inputs(logp, logp, gt_labels, None)
    if has_class_indices(gt_labels):
        index = gt_labels.long().unsqueeze(1)
        return torch.zeros_like(logp).scatter(1, index, 1.0)
    y = gt_labels.double()
    total = y.sum(1, keepdim=True)
    if ((total - 1).abs() > _SUM_TOLERANCE).any():
        raise ValueError('gt_labels must hold class probabilities that add '
                         'up to 1')
    return y / total
