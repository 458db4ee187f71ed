# One frozen teacher; both networks' `head.fc` outputs (logits) are recorded.
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

custom_hooks = [
    dict(type='FrozenTeacherHook'),
    dict(type='ValidateTeacherHook'),
]
