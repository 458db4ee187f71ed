"""Torchvision's names of weights, translated into mmpretrain's."""
from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

# What all torchvision's ResNets have, ResNeXt and wide ones, too.
_RESNET = {'conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'}


def mmpretrain_names(weights: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Name a ResNet's weights as mmpretrain's ``ImageClassifier`` does.

    Args:
        weights: State dict of a classifier.

    Returns:
        New state dict that shares the tensors; with the names that it came
        with, if these are not those of a ResNet of torchvision's.

    Examples:
        >>> list(mmpretrain_names(dict.fromkeys(
        ...     ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'])))
        ['backbone.conv1.weight', 'backbone.layer1.0.conv1.weight', \
'head.fc.weight']
    """
    if not weights.keys() >= _RESNET:
        return OrderedDict(weights)
    return OrderedDict(
        (f'{"head" if key.startswith("fc.") else "backbone"}.{key}', value)
        for key, value in weights.items())
