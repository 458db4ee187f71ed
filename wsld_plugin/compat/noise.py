"""Known chatter of others, kept off the console."""
from __future__ import annotations

import logging
import warnings

from mmengine.logging import MMLogger

# Category, start of the message, and what the path of the warning's file
# matches. Each says nothing about what the user of a program could change.
_WARNINGS: tuple[tuple[type[Warning], str, str], ...] = (
    # mmcv-lite, at every import of mmcv.cnn.
    (UserWarning, 'Fail to import ``MultiScaleDeformableAttention``', ''),
    # mmengine, in every process of a distributed run.
    (UserWarning, 'Setting (OMP|MKL)_NUM_THREADS environment variable', ''),
    # torch >= 2.14, of mmengine's way to wrap the model.
    (FutureWarning, '`broadcast_buffers` is deprecated', ''),
    # setuptools 81, of mmengine's way to look packages up.
    (UserWarning, 'pkg_resources is deprecated as an API', ''),
    # Python >= 3.12, when it first compiles mmpretrain.
    (SyntaxWarning, 'invalid escape sequence', r'.*[\\/]mmpretrain[\\/]'),
)
# Start of what mmengine logs about its own use of its own classes.
_LOGGED = (
    '"FileClient" will be deprecated in future',
    '"HardDiskBackend" is the alias of "LocalBackend"',
)


def quiet() -> None:
    """Silence the known warnings of mmcv, mmengine, mmpretrain and torch.

    For programs: importing the package never does this. Warnings that are
    not known here, and all of our own, are still shown.
    """
    for category, message, module in _WARNINGS:
        warnings.filterwarnings(
            'ignore', message=message, category=category, module=module)
    # Loggers are created later, by Runner, so their class is told.
    MMLogger.filter = _unknown  # type: ignore[assignment]


def _unknown(logger: MMLogger, record: logging.LogRecord) -> bool:
    if record.getMessage().startswith(_LOGGED):
        return False
    return bool(logging.Logger.filter(logger, record))
