# 100 classes of Tiny ImageNet at 32 pixels, 20 epochs in bfloat16:
# data/tinyimagenet100/{train,val,test}/CLASS/*.jpg. `train` has 450 and `val`
# 50 of each class's 500 training pictures; its 50 others are `test`.
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

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=True,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=1,
        end=20,
        convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=5)
val_cfg = test_cfg = dict()
