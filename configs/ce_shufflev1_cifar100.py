# ShuffleNetV1 without a teacher, CIFAR-100.
_base_ = [
    './_base_/models/shufflenet_v1_cifar.py',
    './_base_/datasets/cifar100_bs64.py',
    './_base_/schedules/cifar100_lr001.py',
    './_base_/runtime.py',
]

model = _base_.shufflenet_v1
