"""Tensors in, tensors out: the maths, without state or configuration."""
from .cross_entropy import log_cross_entropy
from .inputs import check_inputs
from .weight import wsld_weight
from .wsld import check_reduction, wsld_loss, wsld_loss_reference

__all__ = [
    'check_inputs', 'check_reduction', 'log_cross_entropy', 'wsld_loss',
    'wsld_loss_reference', 'wsld_weight'
]
