# resnet32x4 without a teacher, CIFAR-100.
_base_ = './_base_/ce_cifar100.py'
from wsld_plugin.models.networks import network

model = network('resnet32x4', 'cifar100')
