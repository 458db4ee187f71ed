# KD with the teacher at work: all weights are 1.
_base_ = './live_wsld.py'

model = dict(
    distiller=dict(
        distill_losses=dict(loss_wsld=dict(weighting='uniform'))))
