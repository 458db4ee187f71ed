# DIST, same recipe as wsld_r34_r18_digits.py, with the settings published
# for CIFAR-100.
_base_ = [
    './_base_/models/resnet18_digits.py',
    './_base_/models/resnet34_digits.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/distill/dist.py',
    './_base_/runtime_digits.py',
]

model = dict(
    architecture=_base_.resnet18,
    teacher=_base_.resnet34,
    teacher_ckpt='work_dirs/ce_r34_digits/epoch_12.pth',
    # Batches are small: the teacher keeps its own statistics.
    teacher_norm_eval=True)

train_dataloader = dict(dataset=dict(indices=100))
