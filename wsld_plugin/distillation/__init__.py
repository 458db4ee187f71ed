"""From settings to trained networks and what they show."""
from .bias_variance import BiasVarianceReport, bias_variance_report
from .digits import DigitsResult, distil_digits
from .recipe import (
    Recipe,
    caching_pays,
    default_batch_size,
    default_size,
    default_workers,
    distillation_config,
    student_config,
    teacher_config,
    teacher_model,
)
from .schedule import default_dtype
from .call import DistilResult, distil
from .settings import DistilError
from .trainings import Training, TrainingError, run_trainings

__all__ = [
    'BiasVarianceReport',
    'DigitsResult',
    'Recipe',
    'Training',
    'TrainingError',
    'bias_variance_report',
    'caching_pays',
    'default_batch_size',
    'default_dtype',
    'default_size',
    'default_workers',
    'distil_digits',
    'distillation_config',
    'DistilError',
    'DistilResult',
    'Training',
    'TrainingError',
    'bias_variance_report',
    'distil',
    'run_trainings',
    'student_config',
    'teacher_config',
    'teacher_model',
]
