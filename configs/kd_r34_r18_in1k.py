# Soft labels without WSLD's weights, same recipe as wsld_r34_r18_in1k.py.
_base_ = [
    './_base_/models/resnet18.py',
    './_base_/models/resnet34.py',
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/distill/kd.py',
    './_base_/runtime.py',
]

model = dict(
    architecture=_base_.resnet18,
    teacher=_base_.resnet34,
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'  # noqa: E501
)
