"""Datasets without download, faster loading, views to be replayed."""
from .digits import DigitsDataset
from .load_crop import LoadRandomResizedCrop
from .views import SeededViews, ViewSampler

__all__ = [
    'DigitsDataset',
    'LoadRandomResizedCrop',
    'SeededViews',
    'ViewSampler',
]
