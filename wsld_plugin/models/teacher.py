"""A teacher of any library, or several, with preprocessing of their own."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from mmengine.model import BaseModel, BaseModule, ModuleList
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .building import build_network, last_layers


@MODELS.register_module()
class Teacher(BaseModel):
    """Classifiers of any library as one teacher, or to be trained alone.

    The pictures of the student's pipeline come in. Its normalisation is
    undone, each member gets its own size and normalisation, and the logits
    leave by ``head.fc``, where recorders of ``head.fc`` find them.

    Args:
        members: Of each, ``network``, ``num_classes`` and ``weights`` as
            :func:`build_network` takes them; ``size``, the edge of its
            pictures in pixels, None for those of the student; ``mean`` and
            ``std`` of its pixels, RGB, in steps of 0 to 255, None for those
            of the student; ``imports``, modules to import first.
        inputs: ``mean`` and ``std`` of the student's ``data_preprocessor``;
            ``to_rgb=False`` if what comes out of that, and they, are BGR. By
            default those of ``data_preprocessor`` here.
        combine: What several members' logits become: ``'probabilities'``,
            the logarithm of their weighted mean probability at temperature
            1, or ``'logits'``, their weighted mean.
        weights: Of the members, positive; by default all the same.
        trainable: ``'all'``, or ``'head'`` for the members' last layers
            alone; BatchNorm then keeps its statistics.
        data_preprocessor: To train or test it alone.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` for the weights
            of all members in one file, as ``teacher_ckpt`` of a distiller.

    Raises:
        ValueError: If an argument is none of these.
        NetworkError: If a member cannot be built; see there.
    """

    def __init__(self,
                 members: Sequence[Mapping[str, Any]],
                 inputs: Optional[Mapping[str, Any]] = None,
                 combine: str = 'probabilities',
                 weights: Optional[Sequence[float]] = None,
                 trainable: str = 'all',
                 data_preprocessor: Optional[Mapping[str, Any]] = None,
                 init_cfg: Optional[dict[str, Any]] = None) -> None:
        super().__init__(
            dict({'type': 'mmpretrain.ClsDataPreprocessor'},
                 **data_preprocessor) if data_preprocessor else None, init_cfg)
        if combine not in ('probabilities', 'logits'):
            raise ValueError("combine must be 'probabilities' or 'logits', "
                             f'got {combine!r}')
        if trainable not in ('all', 'head'):
            raise ValueError("trainable must be 'all' or 'head', got "
                             f'{trainable!r}')
        shares = [*([1] * len(members) if weights is None else weights)]
        if not 0 < len(members) == len(shares) or not all(
                0 < one < math.inf for one in shares):
            raise ValueError('members and weights must be as many, the '
                             f'weights positive, got {len(members)} and '
                             f'{shares}')
        self.backbone = _Ensemble(
            members, data_preprocessor if inputs is None else inputs,
            combine == 'logits', [one / sum(shares) for one in shares])
        self.head = nn.Module()
        self.head.fc = nn.Identity()
        networks: list[Any] = [*self.backbone.networks]
        self._is_init = init_cfg is None and all(
            one.is_init for one in networks)
        self._heads_alone = trainable == 'head'
        if self._heads_alone:
            self.backbone.requires_grad_(False)
            for one in networks:
                for layer in last_layers(one, one.num_classes).values():
                    layer.requires_grad_(True)

    def forward(self,
                inputs: Tensor,
                data_samples: Optional[Sequence[Any]] = None,
                mode: str = 'tensor') -> Any:
        """Run all members.

        Args:
            inputs: Preprocessed pictures ``(N, 3, H, W)``.
            data_samples: Of mmpretrain, with labels for ``'loss'``.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            Logits ``(N, C)``; for ``'loss'`` their cross-entropy, the mean
            in nats, as ``loss``; for ``'predict'`` the samples, with
            ``pred_score`` and ``pred_label``.
        """
        logits: Tensor = self.head.fc(  # type: ignore[operator]
            self.backbone(inputs))
        if mode == 'tensor':
            return logits
        if mode == 'loss' and data_samples:
            target = torch.stack([
                one.gt_score for one in data_samples
            ]) if 'gt_score' in data_samples[0] else torch.cat(
                [one.gt_label for one in data_samples])
            return dict(loss=F.cross_entropy(logits.float(), target))
        if mode == 'predict':
            from mmpretrain.structures import DataSample
            scores = logits.float().softmax(1)
            return [
                sample.set_pred_score(score).set_pred_label(
                    score.argmax(0, keepdim=True)) for sample, score in zip(
                        data_samples or [DataSample()
                                         for _ in scores], scores)
            ]
        raise ValueError("mode must be 'tensor', 'predict' or, with "
                         f"data_samples, 'loss', got {mode!r}")

    def train(self, mode: bool = True) -> Teacher:
        """Switch modes; statistics of frozen members stay as they are."""
        super().train(mode)
        for part in self.modules() if self._heads_alone else ():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self


class _Ensemble(BaseModule):
    """Members, from the student's pictures to joint logits."""

    def __init__(self, members: Sequence[Mapping[str, Any]],
                 inputs: Optional[Mapping[str, Any]], of_logits: bool,
                 shares: Sequence[float]) -> None:
        super().__init__()
        for one in members:
            import_modules_from_strings([*one.get('imports', ())])
        self.networks = ModuleList(
            build_network(one['network'], one['num_classes'],
                          one.get('weights')) for one in members)
        self._pixels = [(one.get('size'), *_change(one, inputs))
                        for one in members]
        self._of_logits, self._shares = of_logits, shares

    def forward(self, inputs: Tensor) -> Tensor:
        logits = [
            network(_adapted(inputs, *pixels))
            for network, pixels in zip(self.networks, self._pixels)
        ]
        if len(logits) == 1:
            return logits[0]
        if self._of_logits:
            return sum(one.float() * share
                       for one, share in zip(logits, self._shares))
        return torch.stack([
            one.float().log_softmax(1) + math.log(share)
            for one, share in zip(logits, self._shares)
        ]).logsumexp(0)


def _change(member: Mapping[str, Any], inputs: Optional[Mapping[str, Any]]
            ) -> tuple[bool, Optional[list[tuple[float, float]]]]:
    """Whether channels are reversed; then each one's factor and summand."""
    flip = not (inputs or {}).get('to_rgb', True)
    mean, std = member.get('mean'), member.get('std')
    if mean is None and std is None:
        return flip, None
    theirs: list[Any] = [(inputs or {}).get(key) for key in ('mean', 'std')]
    if mean is None or std is None or None in theirs:
        raise ValueError(
            'a member with mean and std needs both, and inputs those of the '
            f"student's data_preprocessor, got {mean}, {std} and {inputs}")
    means, stds = ([*one][::-1] if flip else [*one] for one in theirs)
    changes = [(old_std / new_std, (old - new) / new_std)
               for old, old_std, new, new_std in zip(means, stds, mean, std)]
    return flip, changes if changes != [(1, 0)] * 3 else None


@fx.wrap
def _adapted(inputs: Tensor, size: Optional[int], flip: bool,
             changes: Optional[list[tuple[float, float]]]) -> Tensor:
    """The student's pictures as a member wants them, made in float32."""
    pixels = inputs
    if size is not None and inputs.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels.float(), (size, size), mode='bilinear', antialias=True)
    if flip:
        pixels = pixels.flip(1)
    if changes is not None:
        pixels = torch.stack([
            channel * factor + summand for channel, (factor, summand) in zip(
                pixels.float().unbind(1), changes)
        ], 1)
    return pixels.to(inputs.dtype)
