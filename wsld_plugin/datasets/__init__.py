"""Datasets without download, parts and views of any, faster loading."""
from .digits import DigitsDataset
from .load_crop import LoadRandomResizedCrop
from .resampled import resampled_dataset, resampled_indices
from .views import SeededViews, ViewSampler

__all__ = [
    'DigitsDataset',
    'LoadRandomResizedCrop',
    'SeededViews',
    'ViewSampler',
    'resampled_dataset',
    'resampled_indices',
]
