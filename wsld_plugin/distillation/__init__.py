"""From settings to trained networks and what they show."""
from .bias_variance import BiasVarianceReport, bias_variance_report
from .call import DistilResult, distil
from .settings import DistilError
from .trainings import Training, TrainingError, run_trainings

__all__ = [
    'BiasVarianceReport', 'DistilError', 'DistilResult', 'Training',
    'TrainingError', 'bias_variance_report', 'distil', 'run_trainings'
]
