_base_ = [
    '../models/vgg13_cifar.py',
    '../models/mobilenet_v2_cifar.py',
    '../datasets/cifar100_bs64.py',
    '../schedules/cifar100_lr001.py',
    '../runtime.py',
]

pair = dict(
    architecture=_base_.mobilenet_v2,
    teacher=_base_.vgg13,
    # What ce_vgg13_cifar100.py writes.
    teacher_ckpt='work_dirs/ce_vgg13_cifar100/epoch_240.pth')
