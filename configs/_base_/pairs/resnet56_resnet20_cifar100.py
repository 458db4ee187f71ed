_base_ = [
    '../models/resnet56_cifar.py',
    '../models/resnet20_cifar.py',
    '../datasets/cifar100_bs64.py',
    '../schedules/cifar100.py',
    '../runtime.py',
]

pair = dict(
    architecture=_base_.resnet20,
    teacher=_base_.resnet56,
    # What ce_resnet56_cifar100.py writes.
    teacher_ckpt='work_dirs/ce_resnet56_cifar100/epoch_240.pth')
