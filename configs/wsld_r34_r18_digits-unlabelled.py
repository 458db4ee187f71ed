# wsld_r34_r18_digits.py with the teacher's other 798 scans beside the 100, as
# pictures whose labels nobody knows: four to each labelled one.
_base_ = './wsld_r34_r18_digits.py'

model = dict(
    # mmpretrain divides by all samples, of which a fifth has a label.
    architecture=dict(head=dict(loss=dict(loss_weight=5.0))),
    distiller=dict(distill_losses=dict(loss_wsld=dict(unlabelled='teacher'))))

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='MixedDataset',
        labelled=_base_.train_dataloader.dataset,
        unlabelled=dict(
            _base_.train_dataloader.dataset, indices=[*range(100, 898)]),
        ratio=4))

# Ten times as many scans an epoch.
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1
param_scheduler[1].begin = 1
param_scheduler[1].end = 12
train_cfg = dict(max_epochs=12, val_interval=1)
