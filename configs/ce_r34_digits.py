# The teacher of the digits configs: it sees all scans of the train split.
_base_ = [
    './_base_/models/resnet34_digits.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/runtime_digits.py',
]

model = _base_.resnet34

param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 2
param_scheduler[1].begin = 2
param_scheduler[1].end = 12
train_cfg = dict(max_epochs=12, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
