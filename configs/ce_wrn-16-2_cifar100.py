# WRN-16-2 without a teacher, CIFAR-100.
_base_ = './_base_/ce_cifar100.py'
from wsld_plugin.models.networks import network

model = network('wrn-16-2', 'cifar100')
