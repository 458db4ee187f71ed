# The teacher of the digits configs.
_base_ = [
    './_base_/models/resnet34_digits.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/runtime_digits.py',
]

model = _base_.resnet34

train_cfg = dict(max_epochs=20)
_base_.param_scheduler[1].end = train_cfg['max_epochs']
