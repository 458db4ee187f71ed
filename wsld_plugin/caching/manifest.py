"""What a cache says of itself: whose answers it keeps, and to what."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from ..checkpoints import write_atomically

FORMAT = 2
MANIFEST = 'manifest.json'
# Up to here all classes are kept by default; 2 bytes each.
ALL_CLASSES_UP_TO = 256
TOP_K = 64


class TeacherCacheError(ValueError):
    """A cache cannot be made, is missing, damaged or one of something else."""


def make_manifest(num_classes: int, top_k: Optional[int],
                  **fields: Any) -> dict[str, Any]:
    """Manifest of a cache of ``count`` rows.

    Args:
        num_classes: Number of classes.
        top_k: How many classes beside the true one to keep, all if there are
            no more; ``None`` for 64, or all where there are at most 256.
        **fields: ``count`` and whatever else makes this cache another than
            others; what JSON does not know is kept as text.

    Raises:
        TeacherCacheError: If a number is out of range.
    """
    if top_k is None:
        top_k = num_classes if num_classes <= ALL_CLASSES_UP_TO else TOP_K
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
            f'{path} was altered, or is of another version: its digest is not '
            'that of its content')
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, all of it or nothing."""
    text = json.dumps(manifest, indent=2, sort_keys=True)
    write_atomically(folder / MANIFEST, f'{text}\n'.encode())


def check_manifest(folder: Path, manifest: Mapping[str, Any],
                   expected: Mapping[str, Any]) -> None:
    """Refuse a cache whose fields are not those expected, all or some."""
    wanted = dict(_leaves(expected))
    found = dict(_leaves({key: manifest.get(key) for key in expected}))
    found['digest'] = wanted.get('digest')  # Says the same, but not what.
    for path in {**wanted, **found}:
        if found.get(path) != wanted.get(path):
            raise TeacherCacheError(
                f'the teacher cache {folder} was made with {path}='
                f'{found.get(path)!r:.50}, but the config now has '
                f'{wanted.get(path)!r:.50}')


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
    fields = {
        key: value
        for key, value in manifest.items() if key not in ('complete', 'digest')
    }
    text = json.dumps([FORMAT, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
