"""Backbones that mmpretrain lacks, in mmpretrain's registry.

They are registered as soon as mmpretrain's own are. Importing this package
imports mmpretrain. Each ends before the pooling: mmpretrain's
``GlobalAveragePooling`` and ``LinearClsHead`` make it a classifier.
"""
from .mobilenet_cifar import CIFARMobileNetV2
from .mobilenet_v1 import MobileNetV1
from .resnet_cifar import CIFARResNet
from .shufflenet_cifar import CIFARShuffleNetV1, CIFARShuffleNetV2
from .vgg_cifar import CIFARVGG
from .wide_resnet import WideResNet

__all__ = [
    'CIFARVGG', 'CIFARMobileNetV2', 'CIFARResNet', 'CIFARShuffleNetV1',
    'CIFARShuffleNetV2', 'MobileNetV1', 'WideResNet'
]
