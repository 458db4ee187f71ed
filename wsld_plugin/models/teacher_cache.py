"""The file format of a teacher's answers to the views of a data set.

A cache is a folder with ``manifest.json``, ``entries.npy`` (one record for
each row, so that a row is read in one place) and, until it is finished,
``done`` (a byte for each row).
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import write_atomically
from ..functional import log_cross_entropy

FORMAT = 1
# Up to here all classes are kept by default; 2 bytes each.
ALL_CLASSES_UP_TO = 256
TOP_K = 64
_MANIFEST, _ENTRIES, _DONE, _LOCK = ('manifest.json', 'entries.npy', 'done',
                                     'lock')
_HALF_MAX = float(np.finfo(np.float16).max)
# Below this log-cross-entropy, expm1(x) is x (1 + x / 2) to float32.
_TINY_BELOW = -8.0
# What is recorded for information: other versions may well agree.
_NOT_COMPARED = ('complete', 'versions')


class TeacherCacheError(ValueError):
    """A cache is missing, unfinished, or one of something else."""


def row_dtype(num_classes: int, top_k: Optional[int]) -> np.dtype:
    """Record of one row.

    Args:
        num_classes: Number of classes.
        top_k: How many classes beside the true one are kept, or ``None`` for
            all.

    Returns:
        Dtype with ``label``, ``pixels`` (CRC-32 of the picture), ``inputs``
        (:func:`input_probe`), ``log_ce`` (log of the cross-entropy in nats
        at temperature 1) and ``logits``, less the largest of the classes
        that are not the true one. With ``top_k`` also ``classes``, to which
        the logits belong, and ``log_rest``, the log of what the other
        classes' exponentials add up to.
    """
    fields: list[tuple] = [('label', '<u4'), ('pixels', '<u4'),
                           ('inputs', '<f4'), ('log_ce', '<f4')]
    if top_k is None:
        fields.append(('logits', '<f2', (num_classes, )))
    else:
        index = '<u2' if num_classes <= 2**16 else '<u4'
        fields += [('log_rest', '<f4'), ('classes', index, (top_k, )),
                   ('logits', '<f2', (top_k, ))]
    return np.dtype(fields, align=True)


def input_probe(inputs: Tensor) -> Tensor:
    """One number for each preprocessed picture, to know it again by.

    Args:
        inputs: ``(N, channels, *)``, any floating dtype.

    Returns:
        ``(N,)`` float32: the channels' means, weighted by 1, 2, ...
    """
    means = inputs.detach().float().flatten(2).mean(2)
    order = torch.arange(
        1, means.shape[1] + 1, dtype=means.dtype, device=means.device)
    return (means * order).sum(1)


def encode(logits: Tensor, labels: Tensor,
           top_k: Optional[int]) -> dict[str, Tensor]:
    """Fields of rows that are computed from a teacher's logits.

    Args:
        logits: ``(N, C)``, floating point.
        labels: Class indices ``(N,)``.
        top_k: As for :func:`row_dtype`.

    Returns:
        ``log_ce`` and ``logits``, with ``top_k`` also ``classes`` and
        ``log_rest``; on the device of ``logits``.

    Raises:
        TeacherCacheError: If a logit is not finite.
    """
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        raise TeacherCacheError(
            "the teacher's logits are not finite for "
            f'{int((~finite).sum())} of {len(finite)} samples')
    logits = logits.float()
    true = labels.long().unsqueeze(1)
    others = logits.scatter(1, true, float('-inf'))
    top = others.max(1, keepdim=True).values
    fields = dict(log_ce=log_cross_entropy(logits, labels))
    if top_k is None:
        return dict(fields, logits=_half(logits - top))
    kept, classes = others.topk(top_k, dim=1)
    rest = others.scatter(1, classes, float('-inf')).logsumexp(1)
    return dict(
        fields,
        log_rest=rest - top.squeeze(1),
        classes=classes,
        logits=_half(kept - top))


def decode(fields: Mapping[str, Tensor], num_classes: int) -> Tensor:
    r"""Logits of rows, those not kept as if they were equal.

    The true class's logit is set so that the cross-entropy at temperature 1
    is the stored one, which WSLD's weight is made of, whatever float16 did
    to the others. With :math:`L` the log-sum-exp of the other classes and
    :math:`c` the cross-entropy it is :math:`L - \log(e^c - 1)`.

    Args:
        fields: What :func:`encode` returned, and ``label``.
        num_classes: Number of classes, C.

    Returns:
        ``(N, C)`` float32.
    """
    kept = fields['logits'].float()
    true = fields['label'].long().unsqueeze(1)
    if 'classes' not in fields:
        logits = kept
    else:
        left_out = num_classes - 1 - kept.shape[1]
        each = fields['log_rest'].unsqueeze(1) - float(np.log(left_out))
        logits = each.expand(-1, num_classes).scatter(
            1, fields['classes'].long(), kept)
    others = logits.scatter(1, true, float('-inf')).logsumexp(1)
    log_ce = fields['log_ce']
    ce = log_ce.exp()
    # log(expm1(c)) without overflow, and for a confident teacher without
    # rounding c to 0. The clamp keeps the branch not taken free of log(0).
    exact = ce + (-torch.expm1(-ce.clamp(min=1e-30))).log()
    odds = torch.where(log_ce < _TINY_BELOW, log_ce + ce / 2, exact)
    return logits.scatter(1, true, (others - odds).unsqueeze(1))


def _half(logits: Tensor) -> Tensor:
    return logits.clamp(-_HALF_MAX, _HALF_MAX).half()


def make_manifest(num_classes: int, top_k: Optional[int],
                  **fields: Any) -> dict[str, Any]:
    """What a cache says of itself.

    Args:
        num_classes: Number of classes.
        top_k: How many classes beside the true one to keep, all if there are
            no more; ``None`` for 64, or all where there are at most 256.
        **fields: ``count`` (rows) and whatever else makes this cache another
            than others; what JSON does not know is kept as text.

    Returns:
        Manifest of a cache that is not complete.

    Raises:
        TeacherCacheError: If ``top_k`` is out of range.
    """
    if top_k is None:
        top_k = num_classes if num_classes <= ALL_CLASSES_UP_TO else TOP_K
    if top_k < 1:
        raise TeacherCacheError(f'top_k must be at least 1, got {top_k}')
    kept = top_k if top_k < num_classes - 1 else None
    # As they will be read again: tuples become lists.
    plain = json.loads(json.dumps(fields, default=repr))
    return dict(
        plain,
        format=FORMAT,
        num_classes=num_classes,
        top_k=kept,
        row_bytes=row_dtype(num_classes, kept).itemsize,
        complete=False)


def read_manifest(folder: Path) -> Optional[dict[str, Any]]:
    """Manifest of a cache, ``None`` where there is no cache.

    Args:
        folder: The cache.

    Raises:
        TeacherCacheError: If it cannot be understood.
    """
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TeacherCacheError(f'{path} cannot be read: {error}') from error
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        found = manifest.get('format') if isinstance(manifest, dict) else None
        raise TeacherCacheError(
            f'{path} has format {found}, expected {FORMAT}')
    return manifest


def check_manifest(folder: Path, manifest: Mapping[str, Any],
                   expected: Mapping[str, Any]) -> None:
    """Refuse a cache of something else.

    Args:
        folder: The cache, for the message.
        manifest: Its manifest.
        expected: Fields that it must have, all or some.

    Raises:
        TeacherCacheError: Names the first field that differs, and both
            values.
    """
    for key, wanted in expected.items():
        if key in _NOT_COMPARED:
            continue
        difference = _first_difference(manifest.get(key), wanted, key)
        if difference is not None:
            path, found, asked = difference
            raise TeacherCacheError(
                f'the teacher cache {folder} was made with {path}='
                f'{_short(found)}, but the config now has {_short(asked)}')


def _first_difference(found: Any, wanted: Any,
                      path: str) -> Optional[tuple[str, Any, Any]]:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(found.keys() | wanted.keys()):
            difference = _first_difference(
                found.get(key), wanted.get(key), f'{path}.{key}')
            if difference is not None:
                return difference
        return None
    return None if found == wanted else (path, found, wanted)


def _short(value: Any) -> str:
    # Enough of a digest to see that it is another.
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:50]}...'


class TeacherCache:
    """A finished cache, mapped into memory.

    Args:
        folder: The cache.

    Raises:
        TeacherCacheError: If it is missing, not finished or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise TeacherCacheError(
                f'there is no teacher cache in {folder}: make it by '
                'tools/cache_teacher.py with this config')
        if not manifest['complete']:
            missing = int((_read_done(self.folder, manifest) == 0).sum())
            raise TeacherCacheError(
                f'the teacher cache {folder} lacks {missing} of '
                f'{manifest["count"]} rows: finish it by '
                'tools/cache_teacher.py')
        self.manifest = manifest
        self.num_classes: int = manifest['num_classes']
        self._entries, _ = _map_entries(self.folder, manifest)

    def __reduce__(self) -> tuple:
        # A copy of the model maps the file again, it does not read it.
        return TeacherCache, (self.folder, )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._entries)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            indices: ``(N,)`` integers in [0, count).

        Returns:
            ``(N,)`` records, see :func:`row_dtype`.
        """
        return self._entries[indices]


def to_tensors(rows: np.ndarray,
               device: Optional[torch.device] = None) -> dict[str, Tensor]:
    """Fields of rows that :func:`decode` needs.

    Args:
        rows: What :meth:`TeacherCache.rows` returned.
        device: Where to put them; the copy to a GPU is not waited for.

    Returns:
        Tensors by name.
    """
    fields: dict[str, Tensor] = {}
    for name in ('label', 'log_ce', 'log_rest', 'classes', 'logits'):
        if name not in (rows.dtype.names or ()):
            continue
        values = np.ascontiguousarray(rows[name])
        # Older releases of torch know no unsigned integers but bytes.
        if values.dtype.kind == 'u':
            values = values.astype(np.int32)
        tensor = torch.from_numpy(values)
        if device is not None and device.type == 'cuda':
            tensor = tensor.pin_memory().to(device, non_blocking=True)
        elif device is not None:
            tensor = tensor.to(device)
        fields[name] = tensor
    return fields


class TeacherCacheWriter:
    """Rows of a cache that is being made; one for each process.

    Args:
        folder: A cache that :func:`prepare_cache` has readied.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        manifest = read_manifest(folder)
        if manifest is None:
            raise TeacherCacheError(f'there is no teacher cache in {folder}')
        self._dtype = row_dtype(manifest['num_classes'], manifest['top_k'])
        # Not mapped: a full disk shall be an error rather than a signal.
        _, self._offset = _map_entries(folder, manifest)
        self._entries = (folder / _ENTRIES).open('r+b', buffering=0)
        self._done = (folder / _DONE).open('r+b', buffering=0)
        self._pending: list[tuple[int, int]] = []

    def write(self, first: int, **fields: np.ndarray) -> None:
        """Write consecutive rows.

        Args:
            first: Index of the first.
            **fields: Arrays of N values for all fields of the record.

        Raises:
            OSError: If there is no room; names the file.
        """
        rows = np.zeros(len(fields['label']), self._dtype)
        for name in self._dtype.names or ():
            rows[name] = fields[name]
        _write_at(self._entries,
                  self._offset + first * self._dtype.itemsize, rows.tobytes())
        self._pending.append((first, len(rows)))

    def flush(self) -> None:
        """Mark the rows written so far as done, once they are on the disk."""
        if not self._pending:
            return
        os.fsync(self._entries.fileno())
        for first, number in self._pending:
            _write_at(self._done, first, b'\1' * number)
        os.fsync(self._done.fileno())
        self._pending = []

    def close(self) -> None:
        """Mark what was written, and close the files."""
        try:
            self.flush()
        finally:
            self._entries.close()
            self._done.close()


def prepare_cache(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Make the files of a cache, or find those of the same one.

    Args:
        folder: The cache; made if missing.
        manifest: From :func:`make_manifest`.

    Returns:
        Whether the cache is complete already.

    Raises:
        TeacherCacheError: If there is a cache of something else, a folder of
            other things, or not enough room on the disk.
    """
    found = read_manifest(folder)
    if found is not None:
        check_manifest(folder, found, manifest)
        return bool(found['complete'])
    strangers = [
        path.name for path in sorted(folder.iterdir())
        if path.name not in (_ENTRIES, _DONE, _LOCK)
        and not path.name.endswith('.part')
    ]
    if strangers:
        raise TeacherCacheError(
            f'{folder} is no teacher cache, it holds {strangers[0]}: name '
            'another folder')
    size = cache_size(manifest)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TeacherCacheError(
            f'{folder} has room for {free / 1e9:.1f} GB, the teacher cache '
            f'needs {size / 1e9:.1f} GB')
    np.lib.format.open_memmap(
        folder / _ENTRIES,
        mode='w+',
        dtype=row_dtype(manifest['num_classes'], manifest['top_k']),
        shape=(manifest['count'], ))
    with (folder / _DONE).open('wb') as file:
        file.truncate(manifest['count'])
    # Last: with a manifest the other two are there.
    _write_manifest(folder, dict(manifest))
    return False


def cache_size(manifest: Mapping[str, Any]) -> int:
    """Bytes on the disk of a cache, less a few thousand."""
    return manifest['count'] * manifest['row_bytes']


def is_complete(folder: Path) -> bool:
    """Whether there is a cache, and a finished one."""
    manifest = read_manifest(folder)
    return manifest is not None and bool(manifest['complete'])


def unfinished_batches(folder: Path, batch_size: int) -> np.ndarray:
    """Numbers of the batches of rows with at least one that is missing.

    Args:
        folder: A cache that :func:`prepare_cache` has readied.
        batch_size: Batch ``b`` begins with row ``b * batch_size``.

    Returns:
        Ascending integers.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise TeacherCacheError(f'there is no teacher cache in {folder}')
    missing = np.flatnonzero(_read_done(folder, manifest) == 0)
    return np.unique(missing // batch_size)


def finish_cache(folder: Path) -> None:
    """Call a cache complete.

    Raises:
        TeacherCacheError: If rows are missing.
    """
    missing = unfinished_batches(folder, 1)
    if len(missing):
        raise TeacherCacheError(
            f'the teacher cache {folder} lacks {len(missing)} rows, the '
            f'first is {missing[0]}')
    manifest = read_manifest(folder)
    _write_manifest(folder, dict(manifest or {}, complete=True))
    (folder / _DONE).unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builders out of a folder, which is made if missing.

    The system lets go of the lock if the process is killed.

    Raises:
        TeacherCacheError: If another builder is at work in it.
    """
    import fcntl
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TeacherCacheError(
                f'another process is making the teacher cache {folder}'
            ) from error
        yield


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, sort_keys=True)
    write_atomically(folder / _MANIFEST, f'{text}\n'.encode())


def _map_entries(folder: Path,
                 manifest: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The rows, and where in the file they begin."""
    path = folder / _ENTRIES
    try:
        entries = np.load(path, mmap_mode='r')
    except (FileNotFoundError, ValueError) as error:
        raise TeacherCacheError(f'{path} cannot be read: {error}') from error
    dtype = row_dtype(manifest['num_classes'], manifest['top_k'])
    if entries.dtype != dtype or entries.shape != (manifest['count'], ):
        raise TeacherCacheError(
            f'{path} has {entries.shape} rows of {entries.dtype.itemsize} '
            f'bytes, expected ({manifest["count"]},) of {dtype.itemsize}')
    # Without the subclass, whose every view costs time.
    return np.asarray(entries), entries.offset


def _read_done(folder: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    path = folder / _DONE
    try:
        done = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise TeacherCacheError(f'{path} is missing: remove {folder} and '
                                'make it again') from error
    if len(done) != manifest['count']:
        raise TeacherCacheError(f'{path} has {len(done)} rows, expected '
                                f'{manifest["count"]}')
    return done


def _write_at(file: Any, position: int, data: bytes) -> None:
    try:
        file.seek(position)
        while data:
            data = data[file.write(data):]
    except OSError as error:
        # Python names the file where it cannot be opened, but not where the
        # disk is full.
        error.filename = file.name
        raise


def largest_difference(rows: np.ndarray,
                       logits: Tensor) -> tuple[float, float]:
    """How far a teacher's answers are from those stored.

    Args:
        rows: Records.
        logits: What the teacher says now, ``(N, C)``.

    Returns:
        Largest absolute difference of a centred logit, and that in excess of
        float16's rounding and of a thousandth, at least 0; the logarithms
        of the cross-entropies are among them.
    """
    fields = to_tensors(rows)
    logits = logits.float().cpu()
    true = fields['label'].long().unsqueeze(1)
    others = logits.scatter(1, true, float('-inf'))
    now = logits - others.max(1, keepdim=True).values
    if 'classes' in fields:
        now = now.gather(1, fields['classes'].long())
    stored = fields['logits'].float()
    now = now.clamp(-_HALF_MAX, _HALF_MAX)
    gap = (now - stored).abs()
    # Half a unit in the last of 11 digits, and as much for the teacher's own
    # rounding, which may turn it the other way.
    excess = gap - now.abs() * 2**-10 - 1e-3
    log_ce = log_cross_entropy(logits, fields['label'])
    gap_ce = (log_ce - fields['log_ce']).abs()
    return (float(torch.maximum(gap.max(), gap_ce.max())),
            float(F.relu(torch.maximum(excess.max(),
                                       (gap_ce - 1e-3).max()))))
