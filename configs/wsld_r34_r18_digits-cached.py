# wsld_r34_r18_digits.py with the teacher's answers computed beforehand by
# tools/cache_teacher.py. Each scan has 20 views that repeat every 20 epochs,
# where online each of the 60 epochs has its own.
_base_ = './wsld_r34_r18_digits.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='CachedTeacher',
        cache='work_dirs/wsld_r34_r18_digits-cached/teacher',
        teacher=_base_.model.teacher,
        teacher_ckpt=_base_.model.teacher_ckpt),
    teacher_ckpt=None)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        dataset=_base_.train_dataloader.dataset,
        views=20),
    sampler=dict(type='ViewSampler'))
