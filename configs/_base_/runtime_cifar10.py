_base_ = './runtime.py'

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best=None))
