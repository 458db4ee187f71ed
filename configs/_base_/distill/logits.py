# One frozen teacher; both networks' `head.fc` outputs (logits) are recorded.
_base_ = '../runtime.py'

model = dict(
    type='mmrazor.SingleTeacherDistill',
    teacher_norm_eval=False,
    distiller=dict(
        _scope_='mmrazor',
        type='ConfigurableDistiller',
        student_recorders=dict(
            fc=dict(type='ModuleOutputs', source='head.fc')),
        teacher_recorders=dict(
            fc=dict(type='ModuleOutputs', source='head.fc'))))

default_hooks = dict(
    frozen_teacher=dict(type='FrozenTeacherHook'),
    validate_teacher=dict(type='ValidateTeacherHook'))
