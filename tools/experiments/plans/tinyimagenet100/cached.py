# WRN-40-2 to WRN-16-1. The teacher's answers are looked up: all seeds see the
# same 20 views of each picture, in another order.
_base_ = './data.py'
from wsld_plugin.models.networks import network

networks = dict(
    architecture=network('wrn-16-1', 'tinyimagenet100'),
    teacher=dict(
        type='CachedTeacher',
        cache='work_dirs/tinyimagenet100-cache',
        teacher=network('wrn-40-2', 'tinyimagenet100'),
        teacher_ckpt='work_dirs/tinyimagenet100-teacher/epoch_20.pth'),
    teacher_ckpt=None,
    teacher_norm_eval=True)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        dataset=_base_.train_dataloader.dataset,
        views=20),
    sampler=dict(_delete_=True, type='ViewSampler'))
