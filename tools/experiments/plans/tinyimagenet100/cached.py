# WRN-16-2 to ResNet-8. The teacher's answers are looked up: all seeds see the
# same 10 views of each picture, in another order.
_base_ = './data.py'
from wsld_plugin.models.networks import network

networks = dict(
    architecture=network('resnet8', 'tinyimagenet100'),
    teacher=dict(
        type='CachedTeacher',
        cache='work_dirs/tinyimagenet100-cache',
        teacher=network('wrn-16-2', 'tinyimagenet100'),
        teacher_ckpt='work_dirs/tinyimagenet100-teacher/epoch_12.pth'),
    teacher_ckpt=None,
    teacher_norm_eval=True)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededViews',
        dataset=_base_.train_dataloader.dataset,
        views=10),
    sampler=dict(_delete_=True, type='ViewSampler'))
