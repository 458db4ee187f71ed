# ShuffleNetV1 without a teacher, CIFAR-100.
_base_ = [
    './_base_/datasets/cifar100_bs64.py',
    './_base_/schedules/cifar100_lr001.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('shufflev1', 'cifar100')
