# WSLD, resnet56 to resnet20, CIFAR-100. Train ce_resnet56_cifar100.py first.
_base_ = './_base_/wsld_cifar100.py'
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet20', 'cifar100'),
    teacher=network('resnet56', 'cifar100'),
    teacher_ckpt='work_dirs/ce_resnet56_cifar100/epoch_240.pth')
