resnet8 = dict(
    type='ImageClassifier',
    # Inside the classifier, not at the top of the config: there a distiller
    # would build it without the classifier's `train_cfg.augments`.
    data_preprocessor=dict(
        num_classes=100,
        # Mean and deviation of CIFAR-100's training pictures; mmpretrain's
        # datasets read them as RGB.
        mean=[129.3105, 124.1085, 112.404],
        std=[68.2125, 65.4075, 70.4055],
        to_rgb=False),
    backbone=dict(type='CIFARResNet', depth=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
        # torch's own, as the reference.
        init_cfg=None))
