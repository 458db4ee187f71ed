# Soft labels without weights, resnet56 to resnet20, CIFAR-100. Train
# ce_resnet56_cifar100.py first.
_base_ = [
    './_base_/pairs/resnet56_resnet20_cifar100.py',
    './_base_/distill/kd_cifar100.py',
]

model = _base_.pair
