"""Others' names of weights, translated into mmpretrain's."""
from __future__ import annotations

import re
from collections import OrderedDict

from torch import Tensor

# Torchvision's networks whose layers mmpretrain has in the same order under
# other names: a weight that only they have, and mmpretrain's network.
_SAME_ORDER = {
    'features.18.1.weight': 'mobilenet-v2_8xb32_in1k',
    'features.16.1.weight': 'mobilenet-v3-large_8xb128_in1k',
    'features.12.1.weight': 'mobilenet-v3-small_8xb128_in1k',
}


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
    if weights.keys() >= {
            'conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'
    }:
        return OrderedDict(
            (f'{"head" if key.startswith("fc.") else "backbone"}.{key}', value)
            for key, value in weights.items())
    model = next((_SAME_ORDER[key] for key in _SAME_ORDER if key in weights),
                 None)
    if model is None:
        return OrderedDict(weights)
    from mmpretrain import get_model
    names = [*get_model(model).state_dict()]
    if not any(map(_is_counter, weights)):
        names = [name for name in names if not _is_counter(name)]
    if [*weights] != sorted(weights, key=_place) or [*map(_kind, weights)] != [
            *map(_kind, names)
    ]:
        return OrderedDict(weights)
    return OrderedDict(zip(names, weights.values()))


def _is_counter(key: str) -> bool:
    # Which files from before torch 0.4.1 do not have.
    return _kind(key) == 'num_batches_tracked'


def _place(key: str) -> tuple[bool, list[int]]:
    """Where torchvision has a module: the features first, by number."""
    return key.startswith('classifier'), [*map(int, re.findall(r'\d+', key))]


def _kind(key: str) -> str:
    return key.rpartition('.')[2]
