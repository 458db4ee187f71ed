"""What trained networks do: read, predict, decompose, draw."""
from .errors import AnalysisError
from .history import History, read_config, read_history
from .modules import recordable_modules
from .predictions import (
    evaluation_loader,
    logits,
    student_network,
    teacher_network,
)
from .regularization import RegularizationReport, regularization_report
from .runs import compare_runs, method_name, report_experiments
from .tables import print_table

__all__ = [
    'AnalysisError', 'History', 'RegularizationReport', 'compare_runs',
    'evaluation_loader', 'logits', 'method_name', 'print_table', 'read_config',
    'read_history', 'recordable_modules', 'regularization_report',
    'report_experiments', 'student_network', 'teacher_network'
]
