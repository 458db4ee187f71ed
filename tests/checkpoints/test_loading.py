"""Files of others are read, broken ones refused in one line."""
from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision

from wsld_plugin.checkpoints import (
    CheckpointError,
    load_strictly,
    mmpretrain_names,
    read_checkpoint,
)


def saved(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


class Code:
    """A file that would run something when it is read."""

    def __reduce__(self) -> tuple:
        return open, ('trap', 'w')


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new):]


WEIGHT = torch.full((4096, ), 1.5)
ZIP, OLD = (saved({'w': WEIGHT}, zipped) for zipped in (True, False))
KEY = re.findall(rb'\d{9,}', OLD)[-1]
# What a file holds, and what is said of it.
UNREADABLE: dict[str, tuple[bytes, str]] = {
    'cut': (ZIP[:900], 'is cut off'),
    'cut, old format': (OLD[:900], 'cannot be read: unexp'),
    'beginning': (OLD[:20], 'cannot be read: EOFError'),
    'empty': (b'', 'is empty'),
    'HTML': (b'<!DOCTYPE html><p>', "no checkpoint: it starts with b'<!DOC"),
    'foreign': (pickle.dumps({'a': 1}), 'cannot be loaded as a checkpoint'),
    'None': (saved({'state_dict': None}), 'no dictionary of weights'),
    'tensor': (saved(torch.rand(2)), 'weights, .* but a Tensor'),
    'other': (saved({'a\nb': {}, 'epoch': 3}), 'but a b, epoch'),
    # Of these torch says "Invalid argument", as of no file.
    'zeros at first': (put(ZIP, 0, bytes(64)), 'is no checkpoint'),
    'zeros inside': (put(ZIP, 200, bytes(600)), 'is damaged: '),
    # Torch itself gives another tensor, without a word.
    'a byte': (put(ZIP, ZIP.index(WEIGHT.numpy().tobytes()) + 2, b'\xc1'),
               'is damaged: '),
    # In the archive's last records, where its contents begin: here before
    # the file.
    'disks': (put(ZIP, ZIP.index(b'PK\6\7') + 16, b'\x7f'), 'is damaged: '),
    'begins before': (put(ZIP, ZIP.index(b'PK\6\6') + 53, b'\1'),
                      'is damaged: '),
    # Which torch asserts.
    'other tensors': (put(OLD, OLD.rindex(KEY), KEY[::-1]), 'cannot be read'),
}
# Older torch runs whatever a file holds.
if hasattr(torch.serialization, 'add_safe_globals'):
    UNREADABLE['code'] = (saved({'w': Code()}), (
        r'refers to (_?io|builtins)\.open, .* could execute code'))


@pytest.mark.parametrize('name', [*UNREADABLE, 'missing'])
def test_what_is_no_checkpoint_is_refused(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'x.pth'
    content, message = UNREADABLE.get(name, (b'', 'is missing'))
    if name != 'missing':
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'^{path} .*{message}') as e:
        read_checkpoint(str(path))
    assert '\n' not in str(e.value)
    assert isinstance(e.value, OSError) == (name == 'missing')
    assert not Path('trap').exists()


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    for data in (ZIP, OLD):
        (tmp_path / 'x.pth').write_bytes(data)
        found = read_checkpoint(str(tmp_path / 'x.pth'))['state_dict']
        assert torch.equal(found['w'], WEIGHT)


def test_network_with_torchvisions_names_keeps_them(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    other = torchvision.models.resnet18()
    load_strictly(other, str(tmp_path / 'x.pth'), 'x')
    assert torch.equal(other.fc.weight, network.fc.weight)


def test_unknown_names_are_left_alone() -> None:
    for names in (['features.0.weight', 'classifier.6.weight'],
                  ['conv1.weight', 'layer1.0.conv1.weight'],
                  ['backbone.conv1.weight', 'head.fc.weight']):
        weights = {name: torch.rand(1) for name in names}
        assert list(mmpretrain_names(weights)) == names
