_base_ = [
    '../models/resnet32x4_cifar.py',
    '../models/shufflenet_v2_cifar.py',
    '../datasets/cifar100_bs64.py',
    '../schedules/cifar100_lr001.py',
    '../runtime.py',
]

pair = dict(
    architecture=_base_.shufflenet_v2,
    teacher=_base_.resnet32x4,
    # What ce_resnet32x4_cifar100.py writes.
    teacher_ckpt='work_dirs/ce_resnet32x4_cifar100/epoch_240.pth')
