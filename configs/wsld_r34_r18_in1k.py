# WSLD, ResNet-34 to ResNet-18, ImageNet-1k, 8 x 32: the authors' recipe.
_base_ = [
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/distill/wsld.py',
]
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet18', 'in1k'),
    teacher=network('resnet34', 'in1k'),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'  # noqa: E501
)
