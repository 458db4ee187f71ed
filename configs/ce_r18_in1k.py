# ResNet-18 without a teacher, same recipe as wsld_r34_r18_in1k.py.
_base_ = [
    './_base_/datasets/imagenet_bs32.py',
    './_base_/schedules/imagenet_bs256.py',
    './_base_/runtime.py',
]
from wsld_plugin.models.networks import network

model = network('resnet18', 'in1k')
