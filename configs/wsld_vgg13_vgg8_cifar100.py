# WSLD, VGG-13 to VGG-8, CIFAR-100. Train ce_vgg13_cifar100.py first.
_base_ = [
    './_base_/pairs/vgg13_vgg8_cifar100.py',
    './_base_/distill/wsld_cifar100.py',
]

model = _base_.pair
