_base_ = './logits.py'

# WSLD's temperature and weight, so that the per-sample weights are all that
# differs. mmrazor's own KD recipe is tau=1, loss_weight=3.
model = dict(
    distiller=dict(
        distill_losses=dict(
            loss_kd=dict(type='KLDivergence', tau=2, loss_weight=2.5)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(recorder='fc', from_student=True),
                preds_T=dict(recorder='fc', from_student=False)))))
