# tiny_distillation.py with a CachedTeacher: 32 scans, 3 views.
_base_ = './tiny_distillation.py'

model = dict(
    architecture=dict(train_cfg=dict(_delete_=True)),
    teacher=dict(
        _delete_=True,
        type='CachedTeacher',
        cache='teacher_cache',
        teacher=_base_.model.teacher,
        teacher_ckpt='teacher.pth'))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        dataset=dict(
            type='DigitsDataset',
            split='train',
            indices=32,
            pipeline=_base_.train_dataloader.dataset.pipeline),
        views=3),
    sampler=dict(type='ViewSampler'))
