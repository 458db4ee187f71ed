# Soft labels without WSLD's weights, same recipe as wsld_r34_r18_in1k.py.
_base_ = [
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/distill/kd.py',
]
from wsld_plugin.models.networks import network

model = dict(
    architecture=network('resnet18', 'in1k'),
    teacher=network('resnet34', 'in1k'),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'  # noqa: E501
)
