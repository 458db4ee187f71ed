# DKD, same recipe as wsld_r34_r18_digits.py, with the settings published
# for CIFAR-100.
_base_ = [
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/distill/dkd.py',
]
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet18', 'digits'),
    teacher=network('resnet34', 'digits'),
    teacher_ckpt='work_dirs/ce_r34_digits/epoch_12.pth',
    # Batches are small: the teacher keeps its own statistics.
    teacher_norm_eval=True)

train_dataloader = dict(dataset=dict(indices=100))
# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    checkpoint=dict(interval=4, max_keep_ckpts=2, save_best=None))
