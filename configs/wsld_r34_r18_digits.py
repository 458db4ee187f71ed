# WSLD, ResNet-34 to ResNet-18, handwritten digits. The teacher comes from
# ce_r34_digits.py, trained in the same folder before.
_base_ = [
    './_base_/models/resnet18_digits.py',
    './_base_/models/resnet34_digits.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/distill/wsld.py',
    './_base_/runtime_digits.py',
]

model = dict(
    architecture=_base_.resnet18,
    teacher=_base_.resnet34,
    teacher_ckpt='work_dirs/ce_r34_digits/epoch_20.pth')
