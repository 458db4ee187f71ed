# resnet20 without a teacher, 10,000 pictures of CIFAR-10; four times as long
# as its students.
_base_ = [
    './_base_/datasets/cifar10_bs64.py',
    './_base_/schedules/cifar10.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('resnet20', 'cifar10')

param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=24),
]
train_cfg = dict(max_epochs=24)
# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
