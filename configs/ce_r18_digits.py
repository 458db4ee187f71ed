# ResNet-18 without a teacher, same recipe as wsld_r34_r18_digits.py.
_base_ = [
    './_base_/models/resnet18_digits.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/digits.py',
    './_base_/runtime_digits.py',
]

model = _base_.resnet18

train_dataloader = dict(dataset=dict(indices=100))
