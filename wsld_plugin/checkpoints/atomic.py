"""Write files that are never seen half written, and by one at a time."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.fileio import LocalBackend, register_backend


def locked(path: Path, refusal: Exception) -> Any:
    """Keep other processes out, until the context that this returns ends.

    Args:
        path: Of the lock, whose folder is made if it is missing.
        refusal: Raised if another process has the lock.

    Raises:
        OSError: If the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(str(path)).acquire(timeout=0)
    except Timeout as error:
        raise refusal from error


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file that appears complete or not at all.

    The data go to a file beside it first, ``{name}.{process}.part``, which
    takes the name when it is safely on the disk. A file that had the name
    stays as it was until then. Only a killed process leaves its part behind.

    Args:
        path: The file; its folder is made if it is missing.
        data: All that it holds.

    Raises:
        OSError: If there is no room or no permission; names the file.
    """
    data = data.encode() if isinstance(data, str) else data
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open('wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        # Python names the file where it cannot be opened, but not where
        # the disk is full.
        error.filename = str(path)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left; nobody else may write there."""
    for part in folder.glob('*.[0-9]*.part'):
        part.unlink()


@register_backend('wsld_plugin.atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, binary ones written by :func:`write_atomically`.

    As ``backend_args=dict(backend='wsld_plugin.atomic')``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file that holds ``obj``."""
        write_atomically(Path(filepath), obj)
