_base_ = [
    '../models/resnet32x4_cifar.py',
    '../models/resnet8x4_cifar.py',
    '../datasets/cifar100_bs64.py',
    '../schedules/cifar100.py',
    '../runtime.py',
]

pair = dict(
    architecture=_base_.resnet8x4,
    teacher=_base_.resnet32x4,
    # What ce_resnet32x4_cifar100.py writes.
    teacher_ckpt='work_dirs/ce_resnet32x4_cifar100/epoch_240.pth')
