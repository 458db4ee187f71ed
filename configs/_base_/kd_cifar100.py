# Soft labels without weights on CIFAR-100.
_base_ = [
    './datasets/cifar100_bs64.py',
    './schedules/cifar100.py',
    './distill/kd_cifar100.py',
]
