"""Tensors in, tensors out: the maths, without state or configuration."""
from .bias_variance import (
    BiasVariance,
    Jackknife,
    bias_variance,
    bias_variance_from_mean,
    jackknife,
)
from .cross_entropy import log_cross_entropy
from .inputs import check_inputs, check_number
from .regularization import label_gradients, regularization_samples
from .schemes import Weighting, check_weighting, sample_weight
from .weight import wsld_weight
from .wsld import check_reduction, wsld_loss

__all__ = [
    'BiasVariance',
    'Jackknife',
    'Weighting',
    'bias_variance',
    'bias_variance_from_mean',
    'check_inputs',
    'check_number',
    'check_reduction',
    'check_weighting',
    'jackknife',
    'label_gradients',
    'log_cross_entropy',
    'regularization_samples',
    'sample_weight',
    'wsld_loss',
    'wsld_weight',
]
