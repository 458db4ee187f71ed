"""Tensors in, tensors out: the maths, without state or configuration."""
from .bias_variance import BiasVariance, Jackknife, bias_variance, jackknife
from .inputs import check_inputs, check_number
from .regularization import regularization_samples
from .schemes import Weighting, sample_weight
from .soft_labels import SoftLoss, soft_label_loss
from .weight import log_cross_entropy, wsld_weight
from .wsld import check_settings, wsld_loss

__all__ = [
    'BiasVariance', 'Jackknife', 'SoftLoss', 'Weighting', 'bias_variance',
    'check_inputs', 'check_number', 'check_settings', 'jackknife',
    'log_cross_entropy', 'regularization_samples', 'sample_weight',
    'soft_label_loss', 'wsld_loss', 'wsld_weight'
]
