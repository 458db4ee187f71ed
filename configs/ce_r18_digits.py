# ResNet-18 without a teacher, same recipe as wsld_r34_r18_digits.py.
_base_ = [
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('resnet18', 'digits')

train_dataloader = dict(dataset=dict(indices=100))
# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    checkpoint=dict(interval=4, max_keep_ckpts=2, save_best=None))
