# WSLD, VGG-13 to VGG-8, CIFAR-100. Train ce_vgg13_cifar100.py first.
_base_ = './_base_/wsld_cifar100.py'
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('vgg8', 'cifar100'),
    teacher=network('vgg13', 'cifar100'),
    teacher_ckpt='work_dirs/ce_vgg13_cifar100/epoch_240.pth')
