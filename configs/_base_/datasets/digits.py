# scikit-learn's handwritten digits: in its wheel, nothing to download. The
# 8x8 scans are enlarged until ResNet's stride of 32 leaves one position.
train_dataloader = dict(
    batch_size=25,
    # The pictures are so small that starting workers costs more than they do.
    num_workers=0,
    dataset=dict(
        type='DigitsDataset',
        split='train',
        pipeline=[
            dict(type='Resize', scale=32, interpolation='bilinear'),
            dict(type='RandomCrop', crop_size=32, padding=2),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))

val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(
        type='DigitsDataset',
        split='val',
        pipeline=[
            dict(type='Resize', scale=32, interpolation='bilinear'),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

# Hyper-parameters were chosen on `val`; `test` is for reporting only.
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader['dataset'], split='test'))
test_evaluator = val_evaluator
