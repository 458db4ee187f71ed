_base_ = [
    '../models/resnet20_cifar10.py',
    '../models/resnet8_cifar10.py',
    '../datasets/cifar10_bs64.py',
    '../schedules/cifar10.py',
    '../runtime_cifar10.py',
]

pair = dict(
    architecture=_base_.resnet8,
    teacher=_base_.resnet20,
    # What ce_resnet20_cifar10.py writes.
    teacher_ckpt='work_dirs/ce_resnet20_cifar10/epoch_24.pth',
    # The grid of configs/plans/cifar10.yml has training mode, too.
    teacher_norm_eval=True)
