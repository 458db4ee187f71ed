"""Datasets without download, and parts and views of any."""
from .digits import DigitsDataset
from .resampled import resampled_dataset, resampled_indices
from .views import SeededViews, ViewSampler

__all__ = [
    'DigitsDataset',
    'SeededViews',
    'ViewSampler',
    'resampled_dataset',
    'resampled_indices',
]
