"""From settings to trained networks and what they show."""
from .bias_variance import BiasVarianceReport, bias_variance_report
from .digits import DigitsResult, distil_digits
from .trainings import Training, TrainingError, run_trainings

__all__ = [
    'BiasVarianceReport',
    'DigitsResult',
    'Training',
    'TrainingError',
    'bias_variance_report',
    'distil_digits',
    'run_trainings',
]
