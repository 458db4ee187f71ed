_base_ = './kd.py'

# WSLD's temperature and weight again. Tian et al. weigh soft labels by 0.9
# and the cross-entropy by 0.1.
model = dict(
    distiller=dict(
        distill_losses=dict(loss_kd=dict(tau=4, loss_weight=2.25))))
