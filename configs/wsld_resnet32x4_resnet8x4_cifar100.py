# WSLD, resnet32x4 to resnet8x4, CIFAR-100. Train ce_resnet32x4_cifar100.py
# first.
_base_ = './_base_/wsld_cifar100.py'
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet8x4', 'cifar100'),
    teacher=network('resnet32x4', 'cifar100'),
    teacher_ckpt='work_dirs/ce_resnet32x4_cifar100/epoch_240.pth')
