"""tests/faults.py in a short form, and that it finds what is planted."""
import importlib.util
import os
import zipfile

import faults
import pytest
from fuzzing import AREAS

from wsld_plugin.caching import TeacherCache


def test_no_input_breaks_anything():
    areas = [area for area in AREAS if area != 'plans'
             or importlib.util.find_spec('pydantic')]
    assert faults.main(['fuzz', '--count', '200', '--areas', *areas]) == 0


def without_checksum(cache, index):
    size = cache.dtype.itemsize
    return os.pread(cache._file.fileno(), size, index * size)


@pytest.mark.parametrize('area, owner, name, planted, said', [
    ('checkpoints', zipfile.ZipFile, 'testzip', lambda archive: None,
     'silently other tensors'),
    ('caches', TeacherCache, '_read', without_checksum,
     'silently other logits')])
def test_a_reader_that_does_not_look_is_found(area, owner, name, planted, said,
                                              monkeypatch, capsys):
    monkeypatch.setattr(owner, name, planted)
    assert faults.main(['fuzz', '--count', '500', '--areas', area]) == 1
    assert said in capsys.readouterr().out
