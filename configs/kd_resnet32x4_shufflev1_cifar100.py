# Soft labels without weights, resnet32x4 to ShuffleNetV1, CIFAR-100. Train
# ce_resnet32x4_cifar100.py first.
_base_ = [
    './_base_/pairs/resnet32x4_shufflev1_cifar100.py',
    './_base_/distill/kd_cifar100.py',
]

model = _base_.pair
