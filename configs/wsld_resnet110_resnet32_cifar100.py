# WSLD, resnet110 to resnet32, CIFAR-100. Train ce_resnet110_cifar100.py first.
_base_ = [
    './_base_/pairs/resnet110_resnet32_cifar100.py',
    './_base_/distill/wsld_cifar100.py',
]

model = _base_.pair
