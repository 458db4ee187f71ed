# Street scenes of one's own, PSPNet, ResNet-34 to ResNet-18: pictures in
# data/scenes/images, labels of the same names in data/scenes/masks as PNG,
# one number a pixel, 255 where there is none.
_base_ = [
    'wsld_plugin::_base_/schedules/cityscapes_80k.py',
    'wsld_plugin::_base_/distill/wsld_seg.py',
]
from wsld_plugin.models.segmentors import segmentor  # noqa: E402

classes = ('sky', 'building', 'pole', 'road', 'pavement', 'tree',
           'sign_symbol', 'fence', 'car', 'pedestrian', 'bicyclist')
crop = (180, 240)
network = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
changes = dict(
    pretrained=False,  # True: starts from mmseg's ImageNet weights
    data_preprocessor=dict(size=crop),
    decode_head=dict(num_classes=len(classes), norm_cfg=dict(type='BN')),
    auxiliary_head=dict(num_classes=len(classes), norm_cfg=dict(type='BN')))

model = dict(
    architecture=segmentor(
        network, **changes, backbone=dict(norm_cfg=dict(type='BN'))),
    teacher=segmentor(
        network, **changes, backbone=dict(depth=34, norm_cfg=dict(type='BN'))),
    teacher_ckpt='work_dirs/pspnet_r34/iter_3000.pth')

data = dict(
    type='BaseSegDataset',
    data_root='data/scenes',
    metainfo=dict(classes=classes),
    img_suffix='.jpg',
    seg_map_suffix='.png')
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **data,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='RandomResize',
                scale=crop[::-1],
                ratio_range=(0.75, 1.5),
                keep_ratio=True),
            dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs')
        ]))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **data,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
