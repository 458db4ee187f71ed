# resnet56 without a teacher, CIFAR-100.
_base_ = [
    './_base_/models/resnet56_cifar.py',
    './_base_/datasets/cifar100_bs64.py',
    './_base_/schedules/cifar100.py',
    './_base_/runtime.py',
]

model = _base_.resnet56
