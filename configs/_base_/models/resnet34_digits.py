_base_ = './resnet34.py'

resnet34 = dict(
    # Mean and deviation of the training scans.
    data_preprocessor=dict(num_classes=10, mean=[77.5] * 3, std=[82.3] * 3),
    head=dict(num_classes=10, topk=(1, )))
