# WSLD on each pixel of mmseg's networks: `decode_head.loss_decode` of both is
# given the logits at the labels' size, and the labels.
_base_ = '../runtime.py'

default_scope = 'mmseg'

# No paper says which tau and weight suit pixels; these are ImageNet's.
model = dict(
    type='mmrazor.SingleTeacherDistill',
    teacher_norm_eval=True,
    distiller=dict(
        _scope_='mmrazor',
        type='ConfigurableDistiller',
        student_recorders=dict(
            decode=dict(
                type='ModuleInputs', source='decode_head.loss_decode')),
        teacher_recorders=dict(
            decode=dict(
                type='ModuleInputs', source='decode_head.loss_decode')),
        distill_losses=dict(
            loss_wsld=dict(
                type='WSLDLoss', tau=2, loss_weight=2.5, ignore_index=255)),
        loss_forward_mappings=dict(
            loss_wsld=dict(
                student=dict(
                    recorder='decode', from_student=True, data_idx=0),
                teacher=dict(
                    recorder='decode', from_student=False, data_idx=0),
                gt_labels=dict(
                    recorder='decode', from_student=True, data_idx=1)))))

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000, save_best='mIoU'),
    visualization=dict(_delete_=True, type='SegVisualizationHook'),
    frozen_teacher=dict(type='FrozenTeacherHook'),
    validate_teacher=dict(type='ValidateTeacherHook'),
    wsld_monitor=dict(type='WSLDMonitorHook'))

visualizer = dict(
    _delete_=True,
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=False)
tta_model = dict(type='SegTTAModel')
