"""Files and URLs: download, extract, load, convert."""
from .atomic import AtomicBackend, locked, remove_parts, write_atomically
from .download import (
    DownloadError,
    checkpoint_url,
    download_checkpoint,
)
from .loading import (
    CheckpointError,
    CheckpointMismatchError,
    MissingCheckpointError,
    expect_training,
    load_strictly,
    load_weights,
    mmpretrain_names,
    read_checkpoint,
)
from .onnx_file import OnnxError, OnnxStudent, export_onnx
from .student import (
    ExportedStudent,
    export_student,
    student_checkpoint,
    student_model,
    student_weights,
)
from .teacher import (
    FrozenTeacher,
    has_weights,
    keep_teacher,
    load_teacher,
    weights_sha256,
)

__all__ = [
    'AtomicBackend', 'CheckpointError', 'CheckpointMismatchError',
    'DownloadError', 'ExportedStudent', 'FrozenTeacher',
    'MissingCheckpointError', 'OnnxError', 'OnnxStudent', 'checkpoint_url',
    'download_checkpoint', 'expect_training', 'export_onnx', 'export_student',
    'has_weights', 'keep_teacher', 'load_strictly', 'load_teacher',
    'load_weights', 'locked', 'mmpretrain_names', 'read_checkpoint',
    'remove_parts', 'student_checkpoint', 'student_model', 'student_weights',
    'weights_sha256', 'write_atomically'
]
