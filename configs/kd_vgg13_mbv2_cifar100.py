# Soft labels without weights, VGG-13 to MobileNetV2, CIFAR-100. Train
# ce_vgg13_cifar100.py first.
_base_ = './_base_/kd_cifar100.py'
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('mbv2', 'cifar100'),
    teacher=network('vgg13', 'cifar100'),
    teacher_ckpt='work_dirs/ce_vgg13_cifar100/epoch_240.pth')

# As Tian et al. do for ShuffleNets and MobileNets.
optim_wrapper = dict(optimizer=dict(lr=0.01))
