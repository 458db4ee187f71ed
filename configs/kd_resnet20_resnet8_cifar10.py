# Soft labels without weights, resnet20 to resnet8, 10,000 pictures of CIFAR-10.
# Train ce_resnet20_cifar10.py first.
_base_ = [
    './_base_/datasets/cifar10_bs64.py',
    './_base_/schedules/cifar10.py',
    './_base_/distill/kd_cifar100.py',
]
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet8', 'cifar10'),
    teacher=network('resnet20', 'cifar10'),
    teacher_ckpt='work_dirs/ce_resnet20_cifar10/epoch_24.pth',
    # The grid of the plan cifar10.yml has training mode, too.
    teacher_norm_eval=True)

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
