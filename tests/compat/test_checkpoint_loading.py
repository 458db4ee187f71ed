"""What mmengine writes is loaded weights-only, anything else refused."""
from __future__ import annotations

import builtins
import contextlib
import functools
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

import wsld_plugin  # noqa: F401

NUMPY_1_FILE = Path(__file__).parent / 'data' / 'numpy1_checkpoint.pth'
SAFE_BY_DEFAULT = digit_version(torch.__version__) >= digit_version('2.6.0')
only_where_safe = pytest.mark.skipif(
    not SAFE_BY_DEFAULT, reason='this torch executes what it loads')

class Command:
    """Executed when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}', )


class Attribute:
    """Asks for an attribute when unpickled."""

    def __init__(self, owner: object, name: str) -> None:
        self.asked = owner, name

    def __reduce__(self):
        return getattr, self.asked


def load(path: object) -> dict:
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = tmp_path / 'evil.pth'
    torch.save(
        dict(state_dict={}, meta=Command(tmp_path / 'executed')), path)
    return path


def executed(evil: Path) -> bool:
    return evil.with_name('executed').exists()


def test_loads_what_a_runner_wrote(trained):
    checkpoint = load(trained['checkpoint'])
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert np.isfinite(history.mean())
    assert checkpoint['meta']['iter'] == 4


@only_where_safe
def test_torch_refuses_it_without_the_allow_list(trained):
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(trained['checkpoint'])
    finally:
        torch.serialization.add_safe_globals(allowed)
    torch.load(trained['checkpoint'])


def test_loads_a_file_written_under_numpy_1():
    checkpoint = load(NUMPY_1_FILE)
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert history.statistics('mean') == 0.375
    assert history.statistics('min') == 0.25
    assert checkpoint['meta']['best'] == 71.5
    info = checkpoint['message_hub']['runtime_info']
    assert info['flags'].tolist() == [True, False]
    assert info['counts'].dtype == np.int32


@only_where_safe
def test_refuses_to_execute_and_says_what_and_how_to_opt_out(evil):
    with pytest.raises(pickle.UnpicklingError) as refusal:
        load(evil)
    assert not executed(evil)
    said = str(refusal.value)
    assert said.startswith(f'{evil} was not loaded: it refers to ')
    assert f'{os.system.__module__}.system' in said
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in said
    assert '\n' not in said


@only_where_safe
def test_opting_out_loads_it(evil, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.warns(UserWarning, match='FORCE_NO_WEIGHTS_ONLY_LOAD'):
        load(evil)
    assert executed(evil)


@only_where_safe
@pytest.mark.parametrize('owner, name', [(HistoryBuffer, '__init__'),
                                         (np.ndarray, 'mean')])
def test_getattr_reaches_the_statistics_alone(owner, name, tmp_path):
    torch.save(Attribute(owner, name), tmp_path / 'file.pth')
    with pytest.raises(pickle.UnpicklingError, match=r'builtins\.getattr'):
        load(tmp_path / 'file.pth')
    allowed = torch.serialization.get_safe_globals()
    assert builtins.getattr not in allowed


@only_where_safe
def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / 'page.pth'
    path.write_text('<html>not found</html>')
    with pytest.raises(pickle.UnpicklingError) as refusal:
        load(path)
    said = str(refusal.value)
    assert said.startswith(f'{path} cannot be loaded as a checkpoint: ')
    assert said.endswith('Unsupported operand 60')
    assert '\n' not in said


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:

    class Silent(http.server.SimpleHTTPRequestHandler):

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Silent, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@only_where_safe
def test_downloads_are_refused_alike(evil, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with serving(tmp_path) as address, \
            pytest.raises(pickle.UnpicklingError, match=r'evil\.pth was not'):
        load(f'{address}/evil.pth')
    assert not executed(evil)


def test_downloads_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with serving(NUMPY_1_FILE.parent) as address:
        checkpoint = load(f'{address}/{NUMPY_1_FILE.name}')
    assert checkpoint['state_dict']['weight'].tolist() == [0, 1, 2, 3]
