# WSLD, ResNet-50 to MobileNetV1, ImageNet-1k, 8 x 32: the authors' recipe.
_base_ = [
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/distill/wsld.py',
]
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('mbv1', 'in1k'),
    teacher=network('resnet50', 'in1k'),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'  # noqa: E501
)
