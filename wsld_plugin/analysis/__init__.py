"""What trained networks do: read, predict, decompose, draw."""
from .bias_variance import (
    decompose,
    decomposition_rows,
    draw_decomposition,
    keep_predictions,
    readable_rows,
)
from .drawing import plot_runs
from .errors import AnalysisError
from .history import History, read_config, read_history
from .predictions import (
    SPLITS,
    evaluation_loader,
    logits,
    student_network,
    teacher_network,
)
from .regularization import (
    LossSettings,
    Samples,
    checkpoint_rows,
    class_rows,
    draw_samples,
    draw_shares,
    draw_weights,
    inspect_batch,
    join,
    loss_settings,
    picture,
    sample_rows,
    striking_classes,
    striking_samples,
)
from .report import heading, image, page, paragraph, table
from .runs import compare_runs
from .tables import csv_table, markdown_table, mean_and_deviation, readable

__all__ = [
    'SPLITS',
    'AnalysisError',
    'History',
    'LossSettings',
    'Samples',
    'checkpoint_rows',
    'class_rows',
    'compare_runs',
    'csv_table',
    'decompose',
    'decomposition_rows',
    'draw_decomposition',
    'draw_samples',
    'draw_shares',
    'draw_weights',
    'evaluation_loader',
    'heading',
    'image',
    'inspect_batch',
    'join',
    'keep_predictions',
    'logits',
    'loss_settings',
    'markdown_table',
    'mean_and_deviation',
    'page',
    'paragraph',
    'picture',
    'plot_runs',
    'read_config',
    'read_history',
    'readable',
    'readable_rows',
    'sample_rows',
    'striking_classes',
    'striking_samples',
    'student_network',
    'table',
    'teacher_network',
]
