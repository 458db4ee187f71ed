"""Files and URLs: extract, load, convert."""
from .loading import (
    CheckpointMismatchError,
    load_strictly,
    load_weights,
    read_checkpoint,
)
from .student import (
    ExportedStudent,
    export_student,
    student_model,
    student_weights,
)

__all__ = [
    'CheckpointMismatchError',
    'ExportedStudent',
    'export_student',
    'load_strictly',
    'load_weights',
    'read_checkpoint',
    'student_model',
    'student_weights',
]
