# A teacher of timm's, with its own size and normalisation. Where there is no
# network: weights='FILE', timm's model.safetensors.
_base_ = '../wsld_r34_r18_in1k-evalbn.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='Teacher',
        members=[
            dict(
                network='timm:resnet50d',
                weights='pretrained',
                num_classes=1000,
                size=256,
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375])
        ],
        inputs=_base_.model.architecture.data_preprocessor),
    # All weights are those that the member names.
    teacher_ckpt=None)
