"""Write files that are never seen half written."""
from __future__ import annotations

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


def write_atomically(path: Path, data: bytes) -> None:
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
