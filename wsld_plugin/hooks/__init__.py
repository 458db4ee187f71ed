"""Hooks that watch training from the side."""
from .distill_checkpoint import DistillCheckpointHook
from .epoch_seed import EpochSeedHook
from .fast_step import FastStepHook
from .frozen_teacher import FrozenTeacherHook
from .norm_momentum import NormMomentumHook
from .validate_teacher import ValidateTeacherHook
from .wsld_monitor import WSLDMonitorHook

__all__ = [
    'DistillCheckpointHook', 'EpochSeedHook', 'FastStepHook',
    'FrozenTeacherHook', 'NormMomentumHook', 'ValidateTeacherHook',
    'WSLDMonitorHook'
]
