_base_ = [
    '../models/wrn_40_2_cifar.py',
    '../models/shufflenet_v1_cifar.py',
    '../datasets/cifar100_bs64.py',
    '../schedules/cifar100_lr001.py',
    '../runtime.py',
]

pair = dict(
    architecture=_base_.shufflenet_v1,
    teacher=_base_.wrn_40_2,
    # What ce_wrn-40-2_cifar100.py writes.
    teacher_ckpt='work_dirs/ce_wrn-40-2_cifar100/epoch_240.pth')
