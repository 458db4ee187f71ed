# Soft labels without weights, WRN-40-2 to WRN-16-2, CIFAR-100. Train
# ce_wrn-40-2_cifar100.py first.
_base_ = './_base_/kd_cifar100.py'
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('wrn-16-2', 'cifar100'),
    teacher=network('wrn-40-2', 'cifar100'),
    teacher_ckpt='work_dirs/ce_wrn-40-2_cifar100/epoch_240.pth')
