"""WSLD as a loss that MMRazor's distillers build from a config."""
from __future__ import annotations

from numbers import Integral
from typing import Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from wsld_plugin.functional import (
    Weighting,
    check_number,
    check_settings,
    wsld_loss,
)


@MODELS.register_module()
class WSLDLoss(nn.Module):
    """Weighted soft label distillation loss of a batch, a scalar.

    In an existing mmrazor config it replaces ``type='WSLD'`` word for word.
    It is registered with mmengine's root registry, so every OpenMMLab scope
    builds it by its bare name.

    Args:
        tau: Temperature, above 0. The paper takes 2 on ImageNet and 4 on
            CIFAR-100.
        loss_weight: The paper's alpha: 2.5 on ImageNet, 2.25 on CIFAR-100.
        eps: Added to the teacher's cross-entropy inside the weight, in nats.
            0 is the paper's formula, exact for confident teachers too; 1e-7
            reproduces the published code.
        reduction: ``'mean'``, ``'sum'`` or ``'none'``. The mean is over all
            rows that are not ignored, rows of weight 0 among them.
        ignore_index: Class index of rows that do not count.
        num_classes: If given, logits with another class count are refused.
            Never needed.
        weighting: ``'wsld'``, or what the paper compares it with:
            ``'uniform'`` (plain distillation), ``'drop_regularization'``,
            ``'only_regularization'``, ``'drop_random'``, or constant weights
            ``dict(regularization=0.5, other=1.0)``; see
            :func:`wsld_plugin.functional.sample_weight`.

    Raises:
        TypeError: If a number is no number or ``weighting`` neither a name
            nor a dict.
        ValueError: If ``tau`` is not above 0, a number is not finite,
            ``reduction`` or ``weighting`` is unknown, or ``eps`` is given
            with another weighting than ``'wsld'``.

    Source:
        Zhou et al., ICLR 2021, arXiv 2102.00650.

    Example:
        >>> import torch
        >>> loss = WSLDLoss(tau=2.0, loss_weight=2.5)
        >>> z = torch.zeros(4, 2)
        >>> loss(z, z, torch.tensor([0, 1, 1, 0]))  # 2.5 * 4 (1 - 1/e) ln 2
        tensor(4.3815)
    """

    def __init__(self,
                 tau: float = 1.0,
                 loss_weight: float = 1.0,
                 eps: float = 0.0,
                 reduction: str = 'mean',
                 ignore_index: int = -100,
                 num_classes: Optional[int] = None,
                 weighting: Weighting = 'wsld') -> None:
        super().__init__()
        check_settings(tau, eps, reduction, weighting)
        self.tau = float(tau)
        self.loss_weight = check_number('loss_weight', loss_weight)
        self.eps = float(eps)
        self.reduction = reduction
        self.ignore_index = _integer('ignore_index', ignore_index)
        if num_classes is not None:
            num_classes = _integer('num_classes', num_classes)
            check_number('num_classes', num_classes, least=1)
        self.num_classes = num_classes
        # A plain dict, because a config's own kind cannot be compiled.
        self.weighting = (weighting if isinstance(weighting, str) else
                          dict(weighting))

    def forward(self, student: Tensor, teacher: Tensor,
                gt_labels: Tensor) -> Tensor:
        """Compute the loss; see :func:`wsld_plugin.functional.wsld_loss`.

        Args:
            student: Logits ``(N, C)`` or ``(N, C, *)``.
            teacher: Logits of the same shape.
            gt_labels: Class indices ``(N, *)`` or class probabilities shaped
                like the logits.

        Returns:
            A float32 (or float64) scalar; ``(N, *)`` for reduction 'none'.

        Raises:
            TypeError: If an argument is no tensor or has an unusable dtype.
            ValueError: If shapes, class counts or labels do not fit.
        """
        return wsld_loss(student, teacher, gt_labels, self.tau,
                         self.loss_weight, self.eps, self.reduction,
                         self.ignore_index, self.num_classes, self.weighting)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(model)``."""
        return (f'tau={self.tau}, loss_weight={self.loss_weight}, '
                f'eps={self.eps}, reduction={self.reduction!r}, '
                f'ignore_index={self.ignore_index}, '
                f'num_classes={self.num_classes}, '
                f'weighting={self.weighting!r}')


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got '
                        f'{type(value).__name__}')
    return int(value)
