"""Backbones that mmpretrain lacks, in mmpretrain's registry.

They are registered as soon as mmpretrain's own are. Importing this package
imports mmpretrain.
"""
from .wide_resnet import WideResNet

__all__ = ['WideResNet']
