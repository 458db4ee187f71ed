# Chosen on the split `val`, for a student that sees 100 scans: 240 steps.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4, nesterov=True))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=True,
        end=3,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=3,
        end=60,
        convert_to_iter_based=True),
]

train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=4)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=25)
