"""The files of a cache: a folder with ``manifest.json`` and ``rows.bin``.

The second is an array of records, each with a checksum that starts from the
manifest's digest and the row's number. So a row counts only if it is whole,
in its place and of this cache, which is seen whenever it is read: there is
no list of finished rows that could be wrong after a crash, and no byte that
could change unnoticed.
"""
from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from filelock import FileLock, Timeout

from .manifest import (
    TeacherCacheError,
    check_manifest,
    read_manifest,
    write_manifest,
)
from .record import row_dtype

ROWS = 'rows.bin'


class TeacherCache:
    """A cache, to be read or filled.

    A copy, also by ``copy`` or ``pickle``, opens the file again.

    Args:
        folder: The cache.
        manifest: Of a cache that :func:`prepare_cache` has readied, and that
            may be unfinished. By default it is read, and a cache that is not
            finished is refused.

    Raises:
        TeacherCacheError: If it is missing, not finished, or has not the
            size that it should have.
    """

    def __init__(self,
                 folder: Path,
                 manifest: Optional[Mapping[str, Any]] = None) -> None:
        self.folder = Path(folder)
        found = manifest or read_manifest(self.folder)
        if found is None:
            raise TeacherCacheError(
                f'there is no teacher cache in {folder}: make it by '
                'tools/cache_teacher.py with this config')
        self.manifest = found
        self.dtype = row_dtype(found['num_classes'], found['top_k'])
        self._path = self.folder / ROWS
        self._seed = int(found['digest'][:8], 16)
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size != cache_size(found) or not (manifest
                                             or found.get('complete')):
            raise TeacherCacheError(
                f'the teacher cache {folder} is not finished ({ROWS} has '
                f'{size} of {cache_size(found)} bytes): finish it by '
                'tools/cache_teacher.py')
        # Not mapped into memory, where a failing disk or a file that is cut
        # meanwhile ends the process without a word.
        self._file = self._path.open('rb', buffering=0)

    def __reduce__(self) -> tuple:
        return TeacherCache, (self.folder, )

    def __len__(self) -> int:
        """Number of rows."""
        return self.manifest['count']

    def rows(self, indices: Iterable[int]) -> np.ndarray:
        """Read rows.

        Args:
            indices: N integers, N at least 1.

        Returns:
            ``(N,)`` records, see :func:`row_dtype`.

        Raises:
            TeacherCacheError: If there is no such row, or if it is not as it
                was written.
        """
        data = bytearray()
        for index in indices:
            row = self._read(index) if 0 <= index < len(self) else None
            if row is None:
                raise TeacherCacheError(
                    f'row {index} of {self._path}, which has {len(self)}, is '
                    'damaged or not there: compute it by '
                    'tools/cache_teacher.py')
            data += row
        return np.frombuffer(data, self.dtype)

    def missing(self) -> np.ndarray:
        """Numbers of the rows that are missing or damaged, in order."""
        bad = (self._read(index) is None for index in range(len(self)))
        return np.flatnonzero(np.fromiter(bad, bool, len(self)))

    def write(self, indices: Iterable[int], **fields: np.ndarray) -> None:
        """Write rows.

        Args:
            indices: Their N numbers.
            **fields: Arrays of N values for all fields but ``check``.

        Raises:
            OSError: If there is no room; names the file.
        """
        rows = np.zeros(len(fields['label']), self.dtype)
        for name, values in fields.items():
            rows[name] = values
        try:
            # Closed at once: processes on other machines then see the rows.
            with self._path.open('r+b') as file:
                for index, row in zip(indices, rows):
                    file.seek(index * row.itemsize)
                    file.write(self._sealed(index, row.tobytes()[4:]))
        except OSError as error:
            # Python does not say which file the disk is too full for.
            error.filename = str(self._path)
            raise

    def _read(self, index: int) -> Optional[bytes]:
        size = self.dtype.itemsize
        row = os.pread(self._file.fileno(), size, index * size)
        return row if row == self._sealed(index, row[4:]) else None

    def _sealed(self, index: int, content: bytes) -> bytes:
        """A row's content with its checksum before it."""
        check = zlib.crc32(content, (self._seed ^ index) & 0xFFFFFFFF)
        # Never 0, so that a row that was never written is not taken for one.
        return (check or 1).to_bytes(4, 'little') + content


def cache_size(manifest: Mapping[str, Any]) -> int:
    """Bytes of a cache's rows."""
    dtype = row_dtype(manifest['num_classes'], manifest['top_k'])
    return manifest['count'] * dtype.itemsize


def prepare_cache(folder: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    """Make the files of a cache, or find those of the same one.

    The manifest then says whether it is complete. The caller holds the lock.

    Args:
        folder: The cache.
        manifest: From :func:`make_manifest`.

    Returns:
        Rows that are missing or damaged, in order.

    Raises:
        TeacherCacheError: If there is a cache of something else, or not
            enough room on the disk.
    """
    found = read_manifest(folder) or dict(manifest)
    check_manifest(folder, found, manifest)
    path, size = folder / ROWS, cache_size(manifest)
    held = path.stat().st_blocks * 512 if path.is_file() else 0
    free = shutil.disk_usage(folder).free + held
    if size > free:
        raise TeacherCacheError(
            f'{folder} has room for {free / 1e9:.1f} GB, the teacher cache '
            f'needs {size / 1e9:.1f} GB')
    with path.open('ab') as file:
        # To the size that it should have; what is whole stays.
        file.truncate(size)
    missing = TeacherCache(folder, found).missing()
    write_manifest(folder, dict(found, complete=not len(missing)))
    return missing


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builders out of a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / 'lock', timeout=0):
            yield
    except Timeout as error:
        raise TeacherCacheError(
            f'another process is making the teacher cache {folder}'
        ) from error
