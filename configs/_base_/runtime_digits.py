_base_ = './runtime.py'

# The last epoch's weights are the result, whatever `val` says of the others.
default_hooks = dict(
    logger=dict(interval=7),
    checkpoint=dict(max_keep_ckpts=2, save_best=None))
