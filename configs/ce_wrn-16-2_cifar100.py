# WRN-16-2 without a teacher, CIFAR-100.
_base_ = [
    './_base_/models/wrn_16_2_cifar.py',
    './_base_/datasets/cifar100_bs64.py',
    './_base_/schedules/cifar100.py',
    './_base_/runtime.py',
]

model = _base_.wrn_16_2
