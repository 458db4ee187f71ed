# The teacher of the digits configs: it sees all scans of the train split.
_base_ = [
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('resnet34', 'digits')

param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 2
param_scheduler[1].begin = 2
param_scheduler[1].end = 12
train_cfg = dict(max_epochs=12, val_interval=1)
# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best=None))
