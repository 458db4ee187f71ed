# wrn-16-2 without a teacher, 12 epochs.
_base_ = ['./data.py', '../../../../configs/_base_/runtime.py']
from wsld_plugin.models.networks import network

model = network('wrn-16-2', 'tinyimagenet100')

_base_.param_scheduler[1].end = 12
train_cfg = dict(max_epochs=12, val_interval=4)

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
