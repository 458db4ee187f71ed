# The teacher, for 2.4 times as long.
_base_ = './wsld.py'

model = dict(_delete_=True, **_base_.model.teacher)
for _hook in ('frozen_teacher', 'validate_teacher', 'wsld_monitor'):
    _base_.default_hooks.pop(_hook)

param_scheduler = dict(end=48)
train_cfg = dict(max_epochs=48, val_interval=12)
