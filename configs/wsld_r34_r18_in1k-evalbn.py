# mmrazor's recipe: the teacher's BatchNorm keeps its own statistics, and SGD
# is without Nesterov momentum.
_base_ = './wsld_r34_r18_in1k.py'

model = dict(teacher_norm_eval=True)
optim_wrapper = dict(optimizer=dict(nesterov=False))
