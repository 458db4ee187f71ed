# CIFAR-10 as pictures in data/cifar10/{train,val}/CLASS/. A fifth of the
# training pictures is learned from, others of them are `val`; data/cifar10/val,
# the 10,000 test pictures, is `test`.
dataset = dict(
    type='CustomDataset',
    data_root='data/cifar10',
    data_prefix='train',
    with_label=True,
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])

train_dataloader = dict(
    batch_size=64,
    # The pictures are so small that starting workers costs more than they do.
    num_workers=0,
    dataset=dict(
        type='ResampledDataset',
        run=0,
        parts=5,
        dataset=dict(
            dataset,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='RandomCrop', crop_size=32, padding=4),
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                dict(type='PackInputs'),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=True))

val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    # Part 1 of 25 shares nothing with part 0 of 5.
    dataset=dict(type='ResampledDataset', run=1, parts=25, dataset=dataset),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

# Hyper-parameters are chosen on `val`; `test` is for reporting only.
test_dataloader = dict(
    val_dataloader, dataset=dict(dataset, data_prefix='val'))
test_evaluator = val_evaluator

del dataset
