# The student alone.
_base_ = './wsld.py'

model = dict(_delete_=True, **_base_.model.architecture)
for _hook in ('frozen_teacher', 'validate_teacher', 'wsld_monitor'):
    _base_.default_hooks.pop(_hook)
