# resnet8 without a teacher, 10,000 pictures of CIFAR-10.
_base_ = [
    './_base_/datasets/cifar10_bs64.py',
    './_base_/schedules/cifar10.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('resnet8', 'cifar10')

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
