"""WSLD as a loss that MMRazor's distillers build from a config."""
from __future__ import annotations

from inspect import signature
from typing import Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from wsld_plugin.functional import (
    SoftLoss,
    Weighting,
    check_number,
    check_settings,
    wsld_loss,
)
from wsld_plugin.functional.dense import check_rows, without_channel


@MODELS.register_module()
class WSLDLoss(nn.Module):
    """Weighted soft label distillation loss of a batch, a scalar.

    In an existing mmrazor config it replaces ``type='WSLD'`` word for word.
    It is registered with mmengine's root registry, so every OpenMMLab scope
    builds it by its bare name.

    Arguments and errors are those of
    :func:`wsld_plugin.functional.wsld_loss`. The paper takes ``tau`` 2 and
    ``loss_weight``, its alpha, 2.5 on ImageNet, 4 and 2.25 on CIFAR-100;
    ``eps`` 1e-7 reproduces the published code.

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
                 weighting: Weighting = 'wsld',
                 soft_loss: SoftLoss = 'kl',
                 transform: Optional[str] = None,
                 unlabelled: str = 'ignore') -> None:
        super().__init__()
        check_settings(tau, eps, reduction, weighting, soft_loss, transform,
                       unlabelled)
        self.tau = float(tau)
        self.loss_weight = check_number('loss_weight', loss_weight)
        self.eps = float(eps)
        self.reduction = reduction
        self.ignore_index = int(
            check_number('ignore_index', ignore_index, integer=True))
        self.num_classes = num_classes if num_classes is None else int(
            check_number('num_classes', num_classes, least=1, integer=True))
        # Plain dicts, because a config's own kind cannot be compiled.
        self.weighting, self.soft_loss = (
            given if isinstance(given, str) else dict(given)
            for given in (weighting, soft_loss))
        self.transform = transform
        self.unlabelled = unlabelled

    def forward(self, student: Tensor, teacher: Tensor, gt_labels: Tensor,
                teacher_labels: Optional[Tensor] = None) -> Tensor:
        """Compute the loss; see :func:`wsld_plugin.functional.wsld_loss`.

        Labels of pixels may be ``(N, 1, H, W)``. If ``teacher_labels`` are
        given, :func:`wsld_plugin.functional.dense.check_rows` compares them.
        """
        gt_labels = without_channel(gt_labels, student)
        if teacher_labels is not None:
            check_rows(gt_labels, without_channel(teacher_labels, teacher))
        return wsld_loss(student, teacher, gt_labels, self.tau,
                         self.loss_weight, self.eps, self.reduction,
                         self.ignore_index, self.num_classes, self.weighting,
                         self.soft_loss, self.transform, self.unlabelled)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(model)``."""
        names = signature(type(self)).parameters
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in names)
