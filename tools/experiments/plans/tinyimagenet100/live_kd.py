# KD with the teacher at work, so that each run may learn from other pictures.
_base_ = ['./data.py', '../../../../configs/_base_/distill/kd_cifar100.py']
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet8', 'tinyimagenet100'),
    teacher=network('wrn-16-2', 'tinyimagenet100'),
    teacher_ckpt='work_dirs/tinyimagenet100-teacher/epoch_12.pth',
    teacher_norm_eval=True)

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
