_base_ = './logits.py'

# Zhao et al. (CVPR 2022) for resnet56 to resnet20 on CIFAR-100, but without
# the warm-up of their loss over the first epochs.
model = dict(
    distiller=dict(
        student_recorders=dict(
            gt_labels=dict(type='ModuleInputs', source='head.loss_module')),
        distill_losses=dict(
            loss_dkd=dict(
                type='DKDLoss', tau=4, alpha=1, beta=2, loss_weight=1)),
        loss_forward_mappings=dict(
            loss_dkd=dict(
                preds_S=dict(recorder='fc', from_student=True),
                preds_T=dict(recorder='fc', from_student=False),
                gt_labels=dict(
                    recorder='gt_labels', from_student=True, data_idx=1)))))
