# MobileNetV2 without a teacher, CIFAR-100.
_base_ = './_base_/ce_cifar100.py'
from wsld_plugin.models.networks import network

model = network('mbv2', 'cifar100')

# As Tian et al. do for ShuffleNets and MobileNets.
optim_wrapper = dict(optimizer=dict(lr=0.01))
