"""Others' names of weights, translated into mmpretrain's."""
from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

# Blocks in a row of MobileNetV2, which mmpretrain counts by stage.
_V2_STAGES = (1, 2, 3, 4, 3, 3, 1)


def mmpretrain_names(weights: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Name the weights as mmpretrain's ``ImageClassifier`` does.

    Known are torchvision's ResNets (ResNeXt and wide ones, too), MobileNetV2
    and MobileNetV3.

    Args:
        weights: State dict of a classifier.

    Returns:
        New state dict that shares the tensors; with the names that it came
        with, if these are not torchvision's.

    Examples:
        >>> list(mmpretrain_names(dict.fromkeys(
        ...     ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'])))
        ['backbone.conv1.weight', 'backbone.layer1.0.conv1.weight', \
'head.fc.weight']
    """
    rename: Callable[[str], str]
    if weights.keys() >= {
            'conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'
    }:
        rename = _resnet
    elif weights.keys() >= {
            'features.1.conv.0.0.weight', 'classifier.1.weight'
    }:
        rename = _mobilenet_v2(weights)
    elif weights.keys() >= {
            'features.1.block.0.0.weight', 'classifier.3.weight'
    }:
        rename = _mobilenet_v3(weights)
    else:
        return OrderedDict(weights)
    return OrderedDict((rename(key), value) for key, value in weights.items())


def _resnet(key: str) -> str:
    return f'head.{key}' if key.startswith('fc.') else f'backbone.{key}'


def _mobilenet_v2(weights: dict[str, Tensor]) -> Callable[[str], str]:
    blocks = [
        f'backbone.layer{stage}.{block}.conv'
        for stage, count in enumerate(_V2_STAGES, 1) for block in range(count)
    ]
    names = {'classifier.1': 'head.fc'}
    names.update(_pair('features.0', 'backbone.conv1'))
    names.update(_pair(f'features.{len(blocks) + 1}', 'backbone.conv2'))
    for number, block in enumerate(blocks, 1):
        theirs = f'features.{number}.conv'
        # The last convolution and its norm stand side by side instead of in
        # a pair of their own.
        last = max(_children(weights, theirs)) - 1
        for part in range(last):
            names.update(_pair(f'{theirs}.{part}', f'{block}.{part}'))
        names[f'{theirs}.{last}'] = f'{block}.{last}.conv'
        names[f'{theirs}.{last + 1}'] = f'{block}.{last}.bn'
    return _renaming(names)


def _mobilenet_v3(weights: dict[str, Tensor]) -> Callable[[str], str]:
    names = {
        'classifier.0': 'head.layers.0.fc',
        'classifier.3': 'head.layers.1.fc'
    }
    for number in _children(weights, 'features'):
        theirs, ours = f'features.{number}', f'backbone.layer{number}'
        parts = _children(weights, f'{theirs}.block')
        if not parts:
            names.update(_pair(theirs, ours))
            continue
        squeeze = [
            part for part in parts
            if f'{theirs}.block.{part}.fc1.weight' in weights
        ]
        convolutions = [part for part in parts if part not in squeeze]
        # The first block has no expansion.
        kinds = ('expand_conv', 'depthwise_conv',
                 'linear_conv')[-len(convolutions):]
        for part, kind in zip(convolutions, kinds):
            names.update(_pair(f'{theirs}.block.{part}', f'{ours}.{kind}'))
        for part in squeeze:
            for layer in (1, 2):
                names[f'{theirs}.block.{part}.fc{layer}'] = (
                    f'{ours}.se.conv{layer}.conv')
    return _renaming(names)


def _pair(theirs: str, ours: str) -> dict[str, str]:
    """A convolution and its norm, theirs numbered."""
    return {f'{theirs}.0': f'{ours}.conv', f'{theirs}.1': f'{ours}.bn'}


def _children(weights: dict[str, Tensor], prefix: str) -> list[int]:
    """Numbers that follow a prefix."""
    found = (re.match(rf'{re.escape(prefix)}\.(\d+)\.', key)
             for key in weights)
    return sorted({int(match[1]) for match in found if match})


def _renaming(names: dict[str, str]) -> Callable[[str], str]:
    """Rename modules; what is not among them keeps its name."""

    def rename(key: str) -> str:
        module, _, parameter = key.rpartition('.')
        return f'{names.get(module, module)}.{parameter}'

    return rename
