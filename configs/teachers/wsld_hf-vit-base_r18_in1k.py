# A classifier of Hugging Face's. Where there is no network: 'hf:FOLDER' with
# its config.json, preprocessor_config.json and model.safetensors.
_base_ = '../wsld_r34_r18_in1k-evalbn.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='Teacher',
        members=[
            dict(
                network='hf:google/vit-base-patch16-224',
                weights='pretrained',
                num_classes=1000,
                size=224,
                mean=[127.5, 127.5, 127.5],
                std=[127.5, 127.5, 127.5])
        ],
        inputs=_base_.model.architecture.data_preprocessor),
    teacher_ckpt=None)
