_base_ = './logits.py'

# Huang et al. (NeurIPS 2022) for CIFAR-100.
model = dict(
    distiller=dict(
        distill_losses=dict(
            loss_dist=dict(
                type='DISTLoss',
                inter_loss_weight=2,
                intra_loss_weight=2,
                tau=4)),
        loss_forward_mappings=dict(
            loss_dist=dict(
                logits_S=dict(recorder='fc', from_student=True),
                logits_T=dict(recorder='fc', from_student=False)))))
