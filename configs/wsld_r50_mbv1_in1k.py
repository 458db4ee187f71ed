# WSLD, ResNet-50 to MobileNetV1, ImageNet-1k, 8 x 32: the authors' recipe.
_base_ = [
    './_base_/models/mobilenet_v1.py',
    './_base_/models/resnet50.py',
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/distill/wsld.py',
    './_base_/runtime.py',
]

model = dict(
    architecture=_base_.mobilenet_v1,
    teacher=_base_.resnet50,
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'  # noqa: E501
)
