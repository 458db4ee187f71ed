# Channel-wise distillation (CWD), as mmrazor's config for mmseg has it.
_base_ = './wsld.py'

_logits = dict(
    decode=dict(
        _delete_=True, type='ModuleOutputs', source='decode_head.conv_seg'))
model = dict(
    distiller=dict(
        student_recorders=_logits,
        teacher_recorders=_logits,
        distill_losses=dict(
            _delete_=True,
            loss_cwd=dict(
                type='mmrazor.ChannelWiseDivergence', tau=1, loss_weight=5)),
        loss_forward_mappings=dict(
            _delete_=True,
            loss_cwd=dict(
                preds_S=dict(recorder='decode', from_student=True),
                preds_T=dict(recorder='decode', from_student=False)))))
_base_.default_hooks.pop('wsld_monitor')
