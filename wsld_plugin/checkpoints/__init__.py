"""Files and URLs: download, extract, load, convert."""
from .download import DownloadError, checkpoint_url, download_checkpoint
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
    'DownloadError',
    'ExportedStudent',
    'checkpoint_url',
    'download_checkpoint',
    'export_student',
    'load_strictly',
    'load_weights',
    'read_checkpoint',
    'student_model',
    'student_weights',
]
