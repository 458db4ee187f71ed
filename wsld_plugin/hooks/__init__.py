"""Hooks that watch training from the side."""
from .epoch_seed import EpochSeedHook
from .frozen_teacher import FrozenTeacherHook
from .validate_teacher import ValidateTeacherHook

__all__ = ['EpochSeedHook', 'FrozenTeacherHook', 'ValidateTeacherHook']
