"""The files of a cache: a folder with ``manifest.json`` and ``rows.bin``.

The second is an array of records, each with a checksum that starts from the
manifest's digest and the row's number. So a row counts only if it is whole,
in its place and of this cache, which is seen whenever it is read: there is
no list of finished rows that could be wrong after a crash, and no byte that
could change unnoticed.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from .. import checkpoints
from .record import row_dtype

MANIFEST, ROWS = 'manifest.json', 'rows.bin'
# What a manifest has beside its fields.
_OWN = ('complete', 'digest')
# To be raised when files of before would be read wrongly.
_FORMAT = 2
# Up to here all classes are kept by default; 2 bytes each.
_ALL_CLASSES_UP_TO, _TOP_K = 256, 64


class TeacherCacheError(ValueError):
    """A cache cannot be made, is missing, damaged or one of something else."""


class TeacherCache:
    """A cache, to be read or filled; a copy opens the file again.

    Args:
        folder: The cache.
        manifest: Of one that :func:`prepare_cache` has readied, and that may
            be unfinished. By default it is read.

    Raises:
        TeacherCacheError: If it is missing or not finished.
    """

    def __init__(self,
                 folder: Path,
                 manifest: Optional[Mapping[str, Any]] = None) -> None:
        self.folder = Path(folder)
        found = manifest or read_manifest(self.folder)
        if found is None:
            raise TeacherCacheError(f'there is no teacher cache in {folder}: '
                                    'make it by tools/cache_teacher.py')
        self.manifest = found
        self.num_classes, self.top_k = found['num_classes'], found['top_k']
        self.dtype = row_dtype(self.num_classes, self.top_k)
        self._path = self.folder / ROWS
        self._seed = int(found['digest'][:8], 16)
        size = self._path.stat().st_size if self._path.is_file() else 0
        expected = len(self) * self.dtype.itemsize
        if size != expected or not (manifest or found.get('complete')):
            raise TeacherCacheError(
                f'the teacher cache {folder} is not finished ({ROWS} has '
                f'{size} of {expected} bytes): finish it by '
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
        """Read ``(N,)`` records, see ``record.row_dtype``.

        Raises:
            TeacherCacheError: If one is not there, or not as it was written.
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
        """Write N rows, of N values for each field but ``check``."""
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


def make_manifest(num_classes: int, top_k: Optional[int],
                  **fields: Any) -> dict[str, Any]:
    """What a cache says of itself.

    The fields are ``count``, of the rows, and whatever else tells this cache
    from others; what JSON does not know is kept as text.
    """
    if top_k is None:
        top_k = num_classes if num_classes <= _ALL_CLASSES_UP_TO else _TOP_K
    if min(top_k, num_classes - 1, fields['count']) < 1:
        raise TeacherCacheError(
            'a teacher cache needs a top_k of at least 1, two classes and a '
            f'row, got {top_k}, {num_classes} and {fields["count"]}')
    kept = top_k if top_k < num_classes - 1 else None
    fields.update(num_classes=num_classes, top_k=kept)
    # As it will be read again: tuples become lists.
    manifest = json.loads(json.dumps(fields, default=repr))
    return dict(manifest, digest=_digest(manifest))


def read_manifest(folder: Path) -> Optional[dict[str, Any]]:
    """Manifest of a cache, ``None`` where there is none."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise TeacherCacheError(f'{path} cannot be read: {error}') from error
    if not isinstance(manifest, dict) or manifest.get('digest') != _digest(
            manifest):
        raise TeacherCacheError(
            f'{path} was altered, or is of another version: its digest is '
            'not that of its content')
    return manifest


def check_manifest(folder: Path, manifest: Mapping[str, Any],
                   expected: Mapping[str, Any]) -> None:
    """Refuse a cache whose fields are not those expected, all or some."""
    wanted = dict(_leaves(expected))
    found = dict(_leaves({key: manifest.get(key) for key in expected}))
    for path in {**wanted, **found}:
        if path not in _OWN and found.get(path) != wanted.get(path):
            raise TeacherCacheError(
                f'the teacher cache {folder} was made with {path}='
                f'{found.get(path)!r:.50}, but the config now has '
                f'{wanted.get(path)!r:.50}')


def prepare_cache(folder: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    """Make the files of a cache, or find those of the same one.

    Returns the rows that are missing or damaged; the manifest then says
    whether there are any. The caller holds the lock.
    """
    check_manifest(folder, read_manifest(folder) or manifest, manifest)
    path, size = folder / ROWS, manifest['count'] * row_dtype(
        manifest['num_classes'], manifest['top_k']).itemsize
    if not path.exists() and size > shutil.disk_usage(folder).free:
        raise TeacherCacheError(f'{folder} has no room for the teacher cache, '
                                f'which needs {size / 1e6:.2f} MB')
    path.touch()
    # To the size that it should have; what is whole stays.
    os.truncate(path, size)
    missing = TeacherCache(folder, manifest).missing()
    text = json.dumps(
        dict(manifest, complete=not len(missing)), indent=2, sort_keys=True)
    checkpoints.write_atomically(folder / MANIFEST, f'{text}\n')
    return missing


def locked(folder: Path) -> Any:
    """Keep other builders out of a folder, which is made if missing."""
    return checkpoints.locked(folder / 'lock', TeacherCacheError(
        f'another process is making the teacher cache {folder}'))


def _leaves(fields: Mapping[str, Any],
            prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries by dotted path."""
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all that makes a cache another than others."""
    fields = {key: manifest[key] for key in manifest if key not in _OWN}
    text = json.dumps([_FORMAT, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
