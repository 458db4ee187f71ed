_base_ = './wsld.py'

# The paper's settings for CIFAR-100.
model = dict(
    distiller=dict(
        distill_losses=dict(loss_wsld=dict(tau=4, loss_weight=2.25))))
