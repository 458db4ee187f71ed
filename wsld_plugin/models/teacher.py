"""A teacher of any library, or several, with preprocessing of their own."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from mmengine.model import BaseModel, BaseModule, ModuleList
from mmengine.registry import MODELS
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
            of the student.
        inputs: ``mean`` and ``std`` of the student's ``data_preprocessor``,
            and as ``to_rgb`` whether its pictures are then RGB, in which
            order ``mean`` and ``std`` are. By default what
            ``data_preprocessor`` says here.
        combine: What several members' logits become: ``'probabilities'``,
            the logarithm of their weighted mean probability at temperature
            1, or ``'logits'``, their weighted mean.
        weights: Of the members, positive; by default all the same.
        trainable: ``'all'``, or ``'head'`` for the members' last layers
            alone; BatchNorm elsewhere then keeps its statistics.
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
                 data_preprocessor: Optional[dict[str, Any]] = None,
                 init_cfg: Optional[dict[str, Any]] = None) -> None:
        if data_preprocessor:
            data_preprocessor = {
                'type': 'mmpretrain.ClsDataPreprocessor',
                **data_preprocessor
            }
        super().__init__(data_preprocessor, init_cfg)
        for name, got, known in (('combine', combine, ('probabilities',
                                                       'logits')),
                                 ('trainable', trainable, ('all', 'head'))):
            if got not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, '
                                 f'got {got!r}')
        weights = [1.] * len(members) if weights is None else [*weights]
        if not members or len(weights) != len(members) or not all(
                0 < one < float('inf') for one in weights):
            raise ValueError('members must be a list, and weights a positive '
                             f'number for each, got {len(members)} members '
                             f'and {weights}')
        self.backbone = _Ensemble(
            members, data_preprocessor if inputs is None else inputs, combine,
            weights)
        self.head = nn.Module()
        self.head.fc = nn.Identity()
        self._is_init = init_cfg is None and all(
            one.is_init for one in self.backbone.networks)
        self._resting: list[nn.Module] = []
        if trainable == 'head':
            self._rest_but_heads([one['num_classes'] for one in members])

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
        logits = self.head.fc(self.backbone(inputs))
        if mode == 'tensor':
            return logits
        if mode == 'loss' and data_samples is not None:
            soft = 'gt_score' in data_samples[0]
            target = torch.stack([one.gt_score for one in data_samples]) if (
                soft) else torch.cat([one.gt_label for one in data_samples])
            return dict(loss=F.cross_entropy(logits.float(), target))
        if mode == 'predict':
            return _predictions(logits, data_samples)
        raise ValueError("mode must be 'tensor', 'predict' or, with "
                         f"data_samples, 'loss', got {mode!r}")

    def train(self, mode: bool = True) -> Teacher:
        """Switch modes; statistics that rest are not computed anew."""
        super().train(mode)
        for part in self._resting:
            part.eval()
        return self

    def _rest_but_heads(self, classes: Sequence[int]) -> None:
        self.backbone.requires_grad_(False)
        for network in self.backbone.networks:
            for layer in last_layers(network).values():
                layer.requires_grad_(True)
        self._resting = [
            part for part in self.backbone.modules()
            if isinstance(part, _BatchNorm)
        ]


class _Ensemble(BaseModule):
    """Members, from the student's pictures to joint logits."""

    def __init__(self, members: Sequence[Mapping[str, Any]],
                 inputs: Optional[Mapping[str, Any]], combine: str,
                 weights: Sequence[float]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(
            _Adapter(inputs, **{
                key: one.get(key)
                for key in ('size', 'mean', 'std')
            }) for one in members)
        self.networks = ModuleList(
            build_network(one['network'], one['num_classes'],
                          one.get('weights')) for one in members)
        self._combine = combine
        self.register_buffer(
            'shares', torch.tensor(weights) / sum(weights), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Joint logits ``(N, C)``."""
        logits = [
            network(adapter(inputs))
            for adapter, network in zip(self.adapters, self.networks)
        ]
        if len(logits) == 1:
            return logits[0]
        stacked = torch.stack([one.float() for one in logits], -1)
        if self._combine == 'logits':
            return (stacked * self.shares).sum(-1)
        logp = stacked.log_softmax(1) + self.shares.log()
        return logp.logsumexp(-1)


class _Adapter(nn.Module):
    """The student's pictures as a member wants them."""

    def __init__(self, inputs: Optional[Mapping[str, Any]],
                 size: Optional[int], mean: Optional[Sequence[float]],
                 std: Optional[Sequence[float]]) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError('a member must have both mean and std or '
                             f'neither, got {mean} and {std}')
        self.size, self.flip = size, False
        scale: Optional[Tensor] = None
        shift: Optional[Tensor] = None
        if inputs is not None:
            self.flip = not inputs.get('to_rgb', True)
        if mean is not None and std is not None:
            if inputs is None or 'mean' not in inputs or 'std' not in inputs:
                raise ValueError('inputs must have the mean and std of the '
                                 "student's data_preprocessor, got "
                                 f'{inputs and dict(inputs)}')
            order = slice(None, None, -1 if self.flip else 1)
            ours, theirs = (
                torch.tensor([[*cfg['mean']], [*cfg['std']]],
                             dtype=torch.float64)
                for cfg in (dict(mean=[*inputs['mean']][order],
                                 std=[*inputs['std']][order]),
                            dict(mean=mean, std=std)))
            if not torch.equal(ours, theirs):
                scale = (ours[1] / theirs[1]).float().view(-1, 1, 1)
                shift = ((ours[0] - theirs[0]) / theirs[1]).float().view(
                    -1, 1, 1)
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return _adapted(inputs, self.size, self.flip, self.scale, self.shift)


@fx.wrap
def _adapted(inputs: Tensor, size: Optional[int], flip: bool,
             scale: Optional[Tensor], shift: Optional[Tensor]) -> Tensor:
    """Pictures of another size, order and normalisation, in float32."""
    pixels = inputs
    if size is not None and inputs.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels.float(), (size, size),
            mode='bilinear',
            antialias=True)
    if flip:
        pixels = pixels.flip(1)
    if scale is not None:
        pixels = pixels.float() * scale.float() + shift.float()
    return pixels.to(inputs.dtype)


def _predictions(logits: Tensor,
                 data_samples: Optional[Sequence[Any]]) -> list[Any]:
    from mmpretrain.structures import DataSample
    scores = logits.float().softmax(1)
    samples = data_samples or [DataSample() for _ in scores]
    return [
        sample.set_pred_score(score).set_pred_label(score.argmax()[None])
        for sample, score in zip(samples, scores)
    ]
