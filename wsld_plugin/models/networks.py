"""The classifiers of the shipped configs, as one table.

Plain dicts: nothing is built, and neither torch nor mmpretrain is imported.
"""
from __future__ import annotations

from copy import deepcopy
from typing import Any


def as_torch(layer: str) -> dict[str, Any]:
    """``init_cfg`` as torch starts a layer's weights, with zero biases."""
    return dict(type='Kaiming', layer=layer, a=5**0.5, mode='fan_in',
                nonlinearity='leaky_relu', distribution='uniform')


# How the classifier's linear layer starts: as torch does, as torch does but
# with zero bias, and normal; nothing is mmpretrain's own, normal too.
_TORCH = dict(init_cfg=None)
_ZERO_BIAS = dict(init_cfg=as_torch('Linear'))
_NORMAL = dict(init_cfg=dict(type='Normal', layer='Linear', std=0.01))

_STAGES = dict(num_stages=4, out_indices=(3, ), style='pytorch')
_X4 = dict(stem_channels=32, base_channels=64)

# Backbone, channels that it ends with, start of the linear layer. Those below
# the first four are for pictures of 32 pixels, named as in Tian et al.'s
# tables; "MobileNetV2" is half as wide as the original there.
NETWORKS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    'resnet18': (dict(type='ResNet', depth=18, **_STAGES), 512, {}),
    'resnet34': (dict(type='ResNet', depth=34, **_STAGES), 512, {}),
    'resnet50': (dict(type='ResNet', depth=50, **_STAGES), 2048, {}),
    'mbv1': (dict(type='MobileNetV1'), 1024, _TORCH),
    **{f'resnet{depth}': (dict(type='CIFARResNet', depth=depth), 64, _TORCH)
       for depth in (8, 20, 32, 56, 110)},
    'resnet8x4': (dict(type='CIFARResNet', depth=8, **_X4), 256, _TORCH),
    'resnet32x4': (dict(type='CIFARResNet', depth=32, **_X4), 256, _TORCH),
    **{f'wrn-{depth}-{wide}': (
        dict(type='WideResNet', depth=depth, widen_factor=wide), 64 * wide,
        _ZERO_BIAS) for depth in (16, 40) for wide in (1, 2)},
    'vgg8': (dict(type='CIFARVGG', depth=8), 512, _NORMAL),
    'vgg13': (dict(type='CIFARVGG', depth=13), 512, _NORMAL),
    'shufflev1': (dict(type='CIFARShuffleNetV1'), 960, _TORCH),
    'shufflev2': (dict(type='CIFARShuffleNetV2'), 1024, _TORCH),
    'mbv2': (dict(type='CIFARMobileNetV2', widen_factor=0.5), 1280, _NORMAL),
}

# Classes, mean and deviation of the training pictures in steps of 0 to 255,
# and whether they come as BGR: files' do, mmpretrain's CIFAR100 is RGB.
_DATASETS: dict[str, tuple[int, list[float], list[float], bool]] = {
    'in1k': (1000, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True),
    'cifar100': (100, [129.3105, 124.1085, 112.404],
                 [68.2125, 65.4075, 70.4055], False),
    'cifar10': (10, [125.3, 123.0, 113.9], [63.0, 62.1, 66.7], True),
    'tinyimagenet100': (100, [122.56, 113.73, 100.54], [66.28, 61.49, 62.09],
                        True),
    'digits': (10, [77.5] * 3, [82.3] * 3, True),
}


def network(name: str, dataset: str) -> dict[str, Any]:
    """Config of a classifier, for ``model`` or a distiller's networks.

    The preprocessing stands inside it, not at the top of a config: there a
    distiller would build it without the classifier's ``train_cfg.augments``.

    Args:
        name: A network of the table, such as ``'resnet18'``.
        dataset: ``'in1k'``, ``'cifar100'``, ``'cifar10'``,
            ``'tinyimagenet100'`` or ``'digits'``, for the number of classes,
            mean and deviation of the pixels.

    Returns:
        A new dict for mmpretrain's ``MODELS``.

    Raises:
        ValueError: If the network or the data set is none of the table's.

    >>> config = network('resnet20', 'cifar10')
    >>> config['backbone'], config['head']['num_classes']
    ({'type': 'CIFARResNet', 'depth': 20}, 10)
    """
    for what, got, known in (('name', name, NETWORKS), ('dataset', dataset,
                                                         _DATASETS)):
        if got not in known:
            raise ValueError(f'{what} must be one of {", ".join(known)}, '
                             f'got {got!r}')
    backbone, channels, start = deepcopy(NETWORKS[name])
    classes, mean, std, to_rgb = deepcopy(_DATASETS[dataset])
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            num_classes=classes, mean=mean, std=std, to_rgb=to_rgb),
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=channels,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
            topk=(1, 5) if classes >= 100 else (1, ),
            **start))
