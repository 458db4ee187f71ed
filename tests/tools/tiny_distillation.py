# The digits distillation with an eighth of the channels, on 128 scans. The
# teacher is random, the student drops paths and the loader has workers: all
# that a resumed run has to draw anew.
_base_ = '../../configs/wsld_r34_r18_digits.py'

tiny = dict(
    backbone=dict(
        base_channels=8,
        stem_channels=8,
        drop_path_rate=0.3,
        # With zeros a dropped path would not show.
        zero_init_residual=False),
    head=dict(in_channels=64))
model = dict(
    architecture=dict(
        **tiny,
        train_cfg=dict(augments=dict(type='Mixup', alpha=0.5))),
    teacher=tiny,
    teacher_ckpt=None)
train_dataloader = dict(
    batch_size=16, num_workers=2, dataset=dict(indices=128))
val_dataloader = dict(dataset=dict(indices=64))
test_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=3, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        end=3,
        convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=32)
