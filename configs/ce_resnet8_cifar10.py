# resnet8 without a teacher, 10,000 pictures of CIFAR-10.
_base_ = [
    './_base_/models/resnet8_cifar10.py',
    './_base_/datasets/cifar10_bs64.py',
    './_base_/schedules/cifar10.py',
    './_base_/runtime_cifar10.py',
]

model = _base_.resnet8
