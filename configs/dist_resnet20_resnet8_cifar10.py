# DIST, resnet20 to resnet8, 10,000 pictures of CIFAR-10. Train
# ce_resnet20_cifar10.py first.
_base_ = [
    './_base_/pairs/resnet20_resnet8_cifar10.py',
    './_base_/distill/dist.py',
]

model = _base_.pair
