"""Datasets that need no download, and parts of any."""
from .digits import DigitsDataset
from .resampled import resampled_dataset, resampled_indices

__all__ = ['DigitsDataset', 'resampled_dataset', 'resampled_indices']
