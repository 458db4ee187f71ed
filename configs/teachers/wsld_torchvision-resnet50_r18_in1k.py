# A teacher of torchvision's. It sees pictures as the student does, so neither
# its size nor its normalisation is named.
_base_ = '../wsld_r34_r18_in1k-evalbn.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='Teacher',
        members=[
            dict(
                network='torchvision:resnet50',
                weights='pretrained',
                num_classes=1000)
        ]),
    teacher_ckpt=None)
