# Soft labels without weights, WRN-40-2 to WRN-40-1, CIFAR-100. Train
# ce_wrn-40-2_cifar100.py first.
_base_ = [
    './_base_/pairs/wrn-40-2_wrn-40-1_cifar100.py',
    './_base_/distill/kd_cifar100.py',
]

model = _base_.pair
