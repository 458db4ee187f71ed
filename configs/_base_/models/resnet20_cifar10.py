_base_ = './resnet20_cifar.py'

resnet20 = dict(
    # Mean and deviation of CIFAR-10's training pictures; read from files they
    # are BGR.
    data_preprocessor=dict(
        num_classes=10,
        mean=[125.3, 123.0, 113.9],
        std=[63.0, 62.1, 66.7],
        to_rgb=True),
    head=dict(num_classes=10, topk=(1, )))
