# Own code beside mmpretrain's ResNet-34, as one teacher: `network` in
# my_networks.py, in a folder that PYTHONPATH names, returns an nn.Module with
# its weights, from RGB pictures to logits.
_base_ = '../wsld_r34_r18_in1k-evalbn.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='Teacher',
        members=[
            dict(
                network='python:my_networks.network',
                weights='pretrained',
                num_classes=1000,
                size=160,
                mean=[0, 0, 0],
                std=[255, 255, 255]),
            dict(
                network=_base_.model.teacher,
                weights=_base_.model.teacher_ckpt,
                num_classes=1000)
        ],
        inputs=_base_.model.architecture.data_preprocessor,
        # The mean probability, the first one's counting twice.
        combine='probabilities',
        weights=[2, 1]),
    teacher_ckpt=None)
