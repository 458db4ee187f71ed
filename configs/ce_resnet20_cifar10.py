# resnet20 without a teacher, 10,000 pictures of CIFAR-10; four times as long
# as its students.
_base_ = [
    './_base_/models/resnet20_cifar10.py',
    './_base_/datasets/cifar10_bs64.py',
    './_base_/schedules/cifar10.py',
    './_base_/runtime_cifar10.py',
]

model = _base_.resnet20

param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=24),
]

train_cfg = dict(max_epochs=24)
