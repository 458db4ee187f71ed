# For ShuffleNets and MobileNets.
_base_ = './cifar100.py'

optim_wrapper = dict(optimizer=dict(lr=0.01))
