"""Digits and folders of pictures; parts and views of any data set."""
from .digits import DigitsDataset, write_digits
from .folder import PictureFolder, read_folder, write_lists
from .layout import PictureFolderError
from .mixed import mixed_dataset
from .resampled import resampled_dataset, resampled_indices
from .views import SeededViews, ViewSampler

__all__ = [
    'DigitsDataset', 'PictureFolder', 'PictureFolderError', 'SeededViews',
    'ViewSampler', 'mixed_dataset', 'read_folder', 'resampled_dataset',
    'resampled_indices', 'write_digits', 'write_lists'
]
