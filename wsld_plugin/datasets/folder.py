"""Folders of pictures: scanned, checked, split, and kept as lists."""
from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from ..checkpoints import write_atomically
from .layout import SPLITS, Entry, PictureFolderError, list_entries
from .pictures import TRAITS, Picture, examine

# Of a class, for each of val and test where the folder has none.
_SHARE, _FEWEST = 0.1, 3
# Pictures that a thread reads at a time.
_CHUNK = 64
# In OpenCV 5; before, the module itself.
_OPENCV_LOG: Any = getattr(cv2.utils, 'logging', cv2)
_SILENT = 0


@dataclass(frozen=True)
class PictureFolder:
    """Pictures with labels, in three splits.

    Attributes:
        root: The folder, absolute.
        classes: Their names, sorted; a label is an index into them.
        splits: ``'train'``, ``'val'`` and ``'test'``, each with the path of
            each picture, relative to ``root``, and its label.
        left_out: Paths below ``root`` that are not used, and why.
        notes: What else a user should know, as sentences.
        size: Median of the shorter sides of the training pictures, pixels.
        mean: Of the training pictures, each of which counts the same: red,
            green, blue, 0..255.
        std: Likewise, at least 1.
        digest: SHA-256 of the splits' paths, class names and bytes.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    left_out: list[tuple[str, str]]
    notes: list[str]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str


def read_folder(root: str | os.PathLike[str], seed: int = 0) -> PictureFolder:
    """Scan a folder of pictures; read each, with a bar on stderr.

    The layout is ``CLASS/*`` or ``{train,val,test}/CLASS/*``, with any
    folders below a class; ``val`` may be called ``valid`` or ``validation``.
    Where val or test is missing, a tenth of each class of at least three
    training pictures is drawn for it, at least one, by ``seed`` and the
    paths. A picture whose bytes are there twice is never drawn. Nothing on
    the disk is changed.

    Args:
        root: The folder.
        seed: Of the draw.

    Raises:
        PictureFolderError: In one line, if there is no such folder, it has
            fewer than two classes with training pictures, two classes of
            one name, or nothing to validate or test on.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise PictureFolderError(f'{root}: no such folder')
    left_out: list[tuple[str, str]] = []
    entries, folders = list_entries(root, left_out)
    _refuse_one_name({entry.name for entry in entries})
    pictures: dict[str, Picture] = {}
    for path, found in _read(root, [entry.path for entry in entries]):
        if isinstance(found, str):
            left_out.append((path, found))
        else:
            pictures[path] = found
    entries = [entry for entry in entries if entry.path in pictures]
    notes = _draw(entries, pictures, seed)
    classes = tuple(sorted({entry.name for entry in entries}))
    _refuse_too_few(root, entries, left_out)
    notes += _notes(entries, pictures, left_out, sorted(folders - {*classes}))
    splits = {
        split: [(entry.path, classes.index(entry.name)) for entry in entries
                if entry.split == split]
        for split in SPLITS
    }
    lines = [[entry.split, entry.path, entry.name, pictures[entry.path].digest]
             for entry in entries]
    training = [pictures[path] for path, _ in splits['train']]
    mean = np.mean([picture.mean for picture in training], axis=0)
    square = np.mean([picture.square for picture in training], axis=0)
    return PictureFolder(
        root, classes, splits, sorted(left_out), notes,
        int(np.median([picture.side for picture in training])),
        tuple(mean.tolist()),
        tuple(np.sqrt(np.maximum(square - mean**2, 1)).tolist()),
        hashlib.sha256(json.dumps(lines).encode()).hexdigest())


def write_lists(folder: PictureFolder, out: Path) -> None:
    """Keep what was found, as files for people and for mmpretrain.

    ``train.txt``, ``val.txt`` and ``test.txt`` are what ``CustomDataset``
    takes as ``ann_file`` with ``data_prefix=folder.root``;
    ``left_out.csv`` has the rest.

    Args:
        folder: As :func:`read_folder` returns it.
        out: Folder for the files, made if it is missing.
    """
    for split, pictures in folder.splits.items():
        text = ''.join(f'{path} {label}\n' for path, label in pictures)
        write_atomically(out / f'{split}.txt', text)
    table = io.StringIO(newline='')
    csv.writer(table).writerows([('path', 'reason'), *folder.left_out])
    write_atomically(out / 'left_out.csv', table.getvalue())


def _refuse_one_name(names: Collection[str]) -> None:
    seen: dict[str, str] = {}
    for name in sorted(names):
        plain = unicodedata.normalize('NFC', name)
        other = seen.setdefault(plain.casefold().strip(), name)
        if other != name:
            # Escaped where they would look the same.
            alike = unicodedata.normalize('NFC', other) == plain
            first, second = map(ascii if alike else repr, (other, name))
            raise PictureFolderError(
                f'two classes have one name: {first} and {second}; rename '
                'or merge their folders')


def _refuse_too_few(root: Path, entries: Sequence[Entry],
                    left_out: Sequence[tuple[str, str]]) -> None:
    count = len({entry.name for entry in entries if entry.split == 'train'})
    if count < 2:
        said = f'; left out: {len(left_out)}' if left_out else ''
        if left_out:
            said += ', first {}: {}'.format(*min(left_out))
        raise PictureFolderError(
            f'{root} has {count or "no"} class{"" if count else "es"} with '
            'pictures to train on, expected at least two folders CLASS/* or '
            f'{{train,val,test}}/CLASS/*{said}')
    for split in SPLITS:
        if not any(entry.split == split for entry in entries):
            raise PictureFolderError(
                f'{root} has no pictures for {split}, and no class with '
                f'{_FEWEST} different ones to draw some from')


def _read(root: Path,
          paths: Sequence[str]) -> Iterator[tuple[str, Picture | str]]:
    """Examine files in threads: decoding lets go of Python's lock."""
    chunks = [paths[at:at + _CHUNK] for at in range(0, len(paths), _CHUNK)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    level = _OPENCV_LOG.getLogLevel()
    try:
        # What is wrong is told by the results, rather than by libraries.
        _OPENCV_LOG.setLogLevel(_SILENT)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = pool.map(
                lambda chunk: [(path, examine(root / path))
                               for path in chunk], chunks)
            for results in track(
                    found, f'Reading {len(paths)} files', total=len(chunks),
                    console=Console(stderr=True)):
                yield from results
    finally:
        pool.shutdown(cancel_futures=True)
        _OPENCV_LOG.setLogLevel(level)


def _draw(entries: Sequence[Entry], pictures: dict[str, Picture],
          seed: int) -> list[str]:
    """Move entries to the splits that are missing; say which these are."""
    missing = [split for split in SPLITS[1:]
               if not any(entry.split == split for entry in entries)]
    copies = Counter(pictures[entry.path].digest for entry in entries)
    training = defaultdict(list)
    for entry in entries:
        if entry.split == 'train':
            training[entry.name].append(entry)

    def rank(entry: Entry) -> bytes:
        # Unlike a shuffle, it leaves most where they are if some are added.
        return hashlib.sha256(f'{seed}/{entry.path}'.encode()).digest()

    for group in training.values():
        count = round(len(group) * _SHARE) or 1
        if len(group) < _FEWEST:
            continue
        # A copy in another split would be known from training.
        single = sorted((entry for entry in group
                         if copies[pictures[entry.path].digest] == 1),
                        key=rank)
        for number, split in enumerate(missing):
            for entry in single[number * count:(number + 1) * count]:
                entry.split = split
    return [f'{" and ".join(missing)}: drawn from the training pictures, '
            f'{_SHARE:.0%} of each class each, by seed {seed}'
            ] if missing else []


def _notes(entries: Sequence[Entry], pictures: dict[str, Picture],
           left_out: Sequence[tuple[str, str]],
           empty: Sequence[str]) -> list[str]:
    """What was found, in sentences that name the first of each kind."""
    notes = [f'folders without pictures, thus no classes: {_named(empty)}'
             ] if empty else []
    names = {entry.name for entry in entries}
    for split in SPLITS:
        without = sorted(names - {entry.name for entry in entries
                                  if entry.split == split})
        if without:
            notes.append(f'{len(without)} of {len(names)} classes have no '
                         f'{split} pictures: {_named(without)}')
    for trait, text in TRAITS.items():
        paths = [entry.path for entry in entries
                 if trait in pictures[entry.path].traits]
        if paths:
            notes.append(f'{len(paths)} of {len(entries)} pictures: {text} '
                         f'(first: {paths[0]})')
    groups = defaultdict(list)
    for entry in entries:
        groups[pictures[entry.path].digest].append(entry)
    for field, text in (('name', 'classes'), ('split', 'splits')):
        twins = [group for group in groups.values()
                 if len({getattr(entry, field) for entry in group}) > 1]
        if twins:
            first = _named([entry.path for entry in twins[0]])
            notes.append(f'{len(twins)} of {len(groups)} different pictures '
                         f'stand in several {text} (first: {first})')
    for reason, count in Counter(why for _, why in left_out).most_common():
        first = min(path for path, why in left_out if why == reason)
        notes.append(f'{count} left out: {reason} (first: {first})')
    return notes


def _named(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + more
