# wsld_r34_r18_in1k-evalbn.py with the teacher's answers computed beforehand
# by tools/cache_teacher.py: ten passes of the teacher (3.5 GB at 64 classes a
# picture) where online it takes a hundred, and none for the next student. The
# ten views of a picture repeat every ten epochs.
_base_ = './wsld_r34_r18_in1k-evalbn.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='CachedTeacher',
        cache='work_dirs/wsld_r34_r18_in1k-evalbn-cached/teacher',
        teacher=_base_.model.teacher,
        teacher_ckpt=_base_.model.teacher_ckpt),
    teacher_ckpt=None)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        dataset=_base_.train_dataloader.dataset,
        views=10),
    sampler=dict(type='ViewSampler'))
