# PSPNet, ResNet-34 to ResNet-18, CamVid's 11 classes, 20 epochs in bfloat16,
# no weights from elsewhere. data/camvid/images/{train,val,test}/*.jpg are its
# 367, 101 and 233 pictures at 240 x 180, data/camvid/masks the labels of the
# same names as PNG, 255 where there is none.
_base_ = '../../../../docs/segmentation_pipeline.py'

# 1/16 of the picture's size, not 1/8: what two cores can train.
_crop = (128, 160)
_network = dict(
    data_preprocessor=dict(size=_crop),
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
model = dict(
    architecture=_network,
    teacher=_network,
    teacher_ckpt='work_dirs/camvid-teacher/epoch_48.pth')

_dataset = dict(data_root='data/camvid')
_base_.train_dataloader.dataset.pipeline[3].crop_size = _crop
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=_dataset)
val_dataloader = dict(num_workers=0, dataset=_dataset)
test_dataloader = dict(
    num_workers=0,
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path='images/test', seg_map_path='masks/test')))

optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(lr=0.02))
param_scheduler = dict(by_epoch=True, end=20, convert_to_iter_based=True)
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=20, val_interval=5)

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(
        by_epoch=True, interval=1, max_keep_ckpts=1, save_best=None))
log_processor = dict(by_epoch=True)
