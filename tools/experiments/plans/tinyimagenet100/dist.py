# DIST, with the settings published for 100 classes.
_base_ = ['./cached.py', '../../../../configs/_base_/distill/dist.py']

model = _base_.networks

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None))
