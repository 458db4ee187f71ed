# WSLD on the boxes of mmdet's two-stage detectors with a softmax (Faster
# R-CNN and its kin). Both networks have to classify the same boxes, so the
# student is given the samples that were drawn for the teacher.
_base_ = '../runtime.py'

default_scope = 'mmdet'

# No paper says which tau and weight suit boxes; these are ImageNet's.
model = dict(
    type='mmrazor.SingleTeacherDistill',
    teacher_norm_eval=True,
    distiller=dict(
        _scope_='mmrazor',
        type='ConfigurableDistiller',
        student_recorders=dict(
            boxes=dict(
                type='ModuleInputs', source='roi_head.bbox_head.loss_cls')),
        teacher_recorders=dict(
            boxes=dict(
                type='ModuleInputs', source='roi_head.bbox_head.loss_cls')),
        # Two for each picture: of the proposal network and of its boxes.
        distill_deliveries=dict(
            samples=dict(
                type='MethodOutputs',
                max_keep_data=128,
                method_path='mmdet.models.task_modules.samplers.'
                'base_sampler.BaseSampler.sample')),
        distill_losses=dict(
            loss_wsld=dict(type='WSLDLoss', tau=2, loss_weight=2.5)),
        loss_forward_mappings=dict(
            loss_wsld=dict(
                student=dict(recorder='boxes', from_student=True, data_idx=0),
                teacher=dict(
                    recorder='boxes', from_student=False, data_idx=0),
                gt_labels=dict(
                    recorder='boxes', from_student=True, data_idx=1),
                # Refused, if they are other boxes' after all.
                teacher_labels=dict(
                    recorder='boxes', from_student=False, data_idx=1)))))

default_hooks = dict(
    checkpoint=dict(save_best='coco/bbox_mAP'),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
    frozen_teacher=dict(type='FrozenTeacherHook'),
    validate_teacher=dict(type='ValidateTeacherHook'),
    wsld_monitor=dict(type='WSLDMonitorHook'))

visualizer = dict(
    _delete_=True,
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')])
