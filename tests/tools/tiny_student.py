# The student of tiny_distillation.py as a classifier of its own.
_base_ = '../../configs/ce_r18_digits.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(in_channels=64))
test_dataloader = dict(dataset=dict(indices=64))
