# WSLD, PSPNet, ResNet-101 to ResNet-18, Cityscapes, 4 x 2: mmseg's recipe.
_base_ = [
    'mmseg::_base_/datasets/cityscapes.py',
    '../_base_/schedules/cityscapes_80k.py',
    '../_base_/distill/wsld_seg.py',
]
from wsld_plugin.models.segmentors import segmentor

model = dict(
    architecture=segmentor(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    teacher=segmentor(
        'mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        pretrained=False),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'  # noqa: E501
)
