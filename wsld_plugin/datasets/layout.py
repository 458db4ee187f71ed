"""Which files of a folder stand for which class and split."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPLITS = ('train', 'val', 'test')
_SPLIT_OF = dict(
    train='train', val='val', valid='val', validation='val', test='test')


class PictureFolderError(ValueError):
    """A folder cannot be used for training, or is none of pictures."""


@dataclass
class Entry:
    """A file in the folder of a class; ``path`` is relative to the root."""

    path: str
    name: str
    split: str


def list_entries(root: Path, left_out: list[tuple[str, str]]
                 ) -> tuple[list[Entry], set[str]]:
    """List the files of all classes.

    Returns entries, sorted by path within a split, all for train if there are
    no splits; and the names of all folders of classes, with files or not.
    Paths that are not used, and why, are appended to ``left_out``.

    Raises:
        PictureFolderError: If splits are there twice or without train.
    """
    entries: list[Entry] = []
    names: set[str] = set()
    for split, top in _layout(root, left_out).items():
        names.update(map(printable, _folders(root / top)))
        for path in sorted(_files(root, top, (), left_out)):
            name, inside, _ = os.path.relpath(path, top or '.').partition('/')
            if inside:
                entries.append(Entry(path, name, split))
            else:
                left_out.append((path, 'in no folder of a class'))
    return entries, names


def printable(name: str) -> str:
    """A name with what is not UTF-8 escaped."""
    return name.encode(errors='backslashreplace').decode()


def _layout(root: Path, left_out: list[tuple[str, str]]) -> dict[str, str]:
    """The folder of each split; one without a name if there are none."""
    tops = _folders(root)
    named = [name for name in tops if name.casefold() in _SPLIT_OF]
    inner = any(_folders(root / name) for name in named
                if _SPLIT_OF[name.casefold()] == 'train')
    # A class may be called train, as one of CIFAR-100's is.
    if not named or not (inner or named == tops):
        return {'train': ''}
    layout: dict[str, str] = {}
    for name in named:
        split = _SPLIT_OF[name.casefold()]
        if split in layout:
            raise PictureFolderError(f'{root} has two folders for {split}: '
                                     f'{layout[split]} and {name}')
        layout[split] = name
    if 'train' not in layout:
        raise PictureFolderError(
            f'{root} has {" and ".join(named)}, but no folder train')
    for name in sorted(os.listdir(root)):
        if name not in named:
            left_out.append((printable(name),
                             'hidden' if name.startswith('.') else
                             'beside the folders of the splits'))
    return layout


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()
                  if path.is_dir() and not path.name.startswith('.'))


def _files(root: Path, folder: str, above: tuple[str, ...],
           left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Paths of the files below a folder that a list can name."""
    here = os.path.realpath(root / folder)
    try:
        if here in above:
            raise OSError(0, 'a link to a folder above it')
        names = sorted(os.listdir(here))
    except OSError as error:
        left_out.append((printable(folder), f'cannot be read '
                         f'({error.strerror})'))
        return
    for name in names:
        path = f'{folder}/{name}' if folder else name
        full = f'{here}/{name}'
        if os.path.isdir(full) and not name.startswith('.'):
            yield from _files(root, path, (*above, here), left_out)
        elif reason := _reason_against(path, full):
            left_out.append((printable(path), reason))
        else:
            yield path


def _reason_against(path: str, full: str) -> str:
    """Why a file cannot be in a list; empty if it can."""
    if os.path.basename(path).startswith('.'):
        return 'hidden'
    if not os.path.isfile(full):
        return 'a broken link' if os.path.islink(full) else 'no file'
    if printable(path) != path:
        return 'its name is not UTF-8'
    # CustomDataset strips lines, and knows no quotes.
    if path != path.lstrip():
        return 'its name starts with a blank'
    return 'a line break in its name' if {*path} & {*'\r\n'} else ''
