"""A file that is not as it was written is refused, in one line."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from wsld_plugin.checkpoints import CheckpointError, read_checkpoint


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(str(path))
    said = str(caught.value)
    assert said.startswith(str(path)) and '\n' not in said
    return said


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    """Torch itself gives another tensor, without a word."""
    path = tmp_path / 'file.pth'
    weight = torch.full((64,), 1.5)
    torch.save(dict(weight=weight), path)
    assert torch.equal(read_checkpoint(str(path))['state_dict']['weight'],
                       weight)
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    assert 'is damaged: ' in refusal(path)


# In the archive's last records the number of disks, and where its contents
# begin: here before the file.
@pytest.mark.parametrize('record, at, value', [(b'PK\6\7', 16, 127),
                                               (b'PK\6\6', 53, 1)])
def test_wrong_last_records_are_seen(tmp_path: Path, record: bytes, at: int,
                                     value: int) -> None:
    path = tmp_path / 'file.pth'
    torch.save(dict(weight=torch.ones(2**12)), path)
    data = bytearray(path.read_bytes())
    data[data.index(record) + at] = value
    path.write_bytes(data)
    assert 'is damaged: ' in refusal(path)


def test_zeros_and_half_of_it_are_seen(tmp_path: Path) -> None:
    path = tmp_path / 'file.pth'
    torch.save(dict(weight=torch.ones(2**12)), path)
    data = path.read_bytes()
    # Of these torch says "Invalid argument", as of no file.
    path.write_bytes(bytes(64) + data[64:])
    assert 'is no checkpoint' in refusal(path)
    path.write_bytes(data[:200] + bytes(600) + data[800:])
    assert 'is damaged' in refusal(path)
    path.write_bytes(data[:len(data) // 2])
    assert 'is cut off' in refusal(path)


def test_the_old_format_with_another_list_of_tensors(tmp_path: Path) -> None:
    """Which torch asserts."""
    path = tmp_path / 'file.pth'
    torch.save(dict(weight=torch.ones(9)), path,
               _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    key = re.findall(rb'\d{9,}', data)[-1]
    before, after = data.rsplit(key, 1)
    path.write_bytes(before + key[::-1] + after)
    assert 'cannot be read' in refusal(path)


def test_a_line_break_in_a_key_is_none_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / 'file.pth'
    torch.save({'a\nb': 'x'}, path)
    assert 'but a b' in refusal(path)
