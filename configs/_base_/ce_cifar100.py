# CIFAR-100 without a teacher.
_base_ = [
    './datasets/cifar100_bs64.py',
    './schedules/cifar100.py',
    './runtime.py',
]
