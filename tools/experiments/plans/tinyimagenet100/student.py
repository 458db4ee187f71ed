# resnet8 without a teacher.
_base_ = ['./data.py', '../../../../configs/_base_/runtime.py']
from wsld_plugin.models.networks import network

model = network('resnet8', 'tinyimagenet100')

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
