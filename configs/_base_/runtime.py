default_scope = 'mmpretrain'
custom_imports = dict(imports=['wsld_plugin'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Without the frozen teacher, and with the student in a file of its own.
    checkpoint=dict(
        type='DistillCheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # A run that was cut and resumed draws the same augmentations.
    epoch_seed=dict(type='EpochSeedHook'),
    # Ranks keep their own BatchNorm statistics while training; one average
    # of them is validated and saved.
    sync_buffers=dict(type='SyncBuffersHook'),
    visualization=dict(type='VisualizationHook', enable=False))
# For hooks of your own: none of ours is in this list, which a child replaces.
custom_hooks = []

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])

log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
