# 100 classes of Tiny ImageNet at 32 pixels, 10 epochs in bfloat16:
# data/tinyimagenet100/{train,val,test}/CLASS/*.jpg. The classes are those that
# numpy's RandomState(0).permutation(200)[:100] takes of all in the order of
# their names. `val` has the last 50 of each class's 500 training pictures,
# `train` the others; the 50 that are published for validation are `test`.
_base_ = '../../../../configs/_base_/schedules/cifar10.py'

_dataset = dict(
    type='CustomDataset',
    data_root='data/tinyimagenet100',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
train_dataloader = dict(
    batch_size=64,
    # The pictures are so small that starting workers costs more than they do.
    num_workers=0,
    dataset=dict(
        _dataset,
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    dataset=dict(_dataset, data_prefix='val'),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = dict(
    val_dataloader, dataset=dict(_dataset, data_prefix='test'))
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))

optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
_base_.param_scheduler[1].end = 10
train_cfg = dict(max_epochs=10, val_interval=5)
