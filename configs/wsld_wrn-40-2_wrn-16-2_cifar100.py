# WSLD, WRN-40-2 to WRN-16-2, CIFAR-100. Train ce_wrn-40-2_cifar100.py first.
_base_ = [
    './_base_/pairs/wrn-40-2_wrn-16-2_cifar100.py',
    './_base_/distill/wsld_cifar100.py',
]

model = _base_.pair
