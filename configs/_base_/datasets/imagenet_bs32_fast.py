# The same pictures as imagenet_bs32.py for less of the CPU's time.
_base_ = './imagenet_bs32.py'

import importlib.util
import os

train_dataloader = dict(
    # One worker for each core that this process may use, shared with its
    # like on the machine, but for the one that the process itself needs.
    # Which augmentations a seed gives depends on this number.
    num_workers=min(
        16,
        max(
            1,
            len(os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity')
                else range(os.cpu_count() or 1)) //
            int(os.environ.get('LOCAL_WORLD_SIZE', 1)) - 1)),
    # Batches are put together by the workers. They end with the epoch, as
    # EpochSeedHook needs it for runs that are resumed.
    collate_fn=dict(type='default_collate'),
    persistent_workers=False,
    dataset=dict(pipeline=[
        dict(
            type='LoadRandomResizedCrop',
            scale=224,
            # Equal pixels, where nvImageCodec is installed.
            region=all(
                importlib.util.find_spec(name)
                for name in ('nvidia', 'nvidia.nvimgcodec'))),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]))

val_dataloader = dict(
    num_workers=train_dataloader['num_workers'],
    collate_fn=dict(type='default_collate'))
test_dataloader = val_dataloader
