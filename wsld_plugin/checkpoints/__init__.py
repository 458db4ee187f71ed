"""Files and URLs: extract, load, convert."""
from .loading import (
                      CheckpointMismatchError,
                      load_strictly,
                      load_weights,
                      read_checkpoint,
)

__all__ = [
    'CheckpointMismatchError', 'load_strictly', 'load_weights',
    'read_checkpoint'
]
