"""What mmengine writes is loaded weights-only, anything else refused."""
import functools
import http.server
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

import wsld_plugin  # noqa: F401

NUMPY_1_FILE = Path(__file__).parent / 'data' / 'numpy1_checkpoint.pth'
only_where_safe = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6.0'),
    reason='this torch executes what it loads')


class Reduced:
    """Calls a function when unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        function, *args = self.call
        return function, tuple(args)


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.fixture(params=[True])
def evil(request, tmp_path):
    path = tmp_path / 'evil.pth'
    command = Reduced(os.system, f'touch {tmp_path / "executed"}')
    torch.save(dict(state_dict={}, meta=command), path,
               _use_new_zipfile_serialization=request.param)
    return path


def executed(evil):
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


def test_refuses_to_execute_and_says_what_and_how_to_opt_out(
        evil, monkeypatch):
    with pytest.raises(pickle.UnpicklingError) as refusal:
        load(evil)
    assert not executed(evil)
    said = str(refusal.value)
    assert said.startswith(f'{evil} was not loaded: it refers to '
                           f'{os.system.__module__}.system')
    assert '\n' not in said
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in said
    load(evil)
    assert executed(evil)


@pytest.mark.parametrize('owner, name', [(HistoryBuffer, '__init__'),
                                         (np.ndarray, 'mean')])
def test_getattr_reaches_the_statistics_alone(owner, name, tmp_path):
    torch.save(Reduced(getattr, owner, name), tmp_path / 'file.pth')
    with pytest.raises(pickle.UnpicklingError, match=r'builtins\.getattr'):
        load(tmp_path / 'file.pth')


@pytest.mark.parametrize('evil', [True, False], indirect=True)
def test_refuses_where_torch_itself_would_execute(evil, monkeypatch):
    """As before torch 2.6, and as torch.hub asks for."""
    monkeypatch.setattr(
        torch, 'load', functools.partial(torch.load, weights_only=False))
    with pytest.raises(pickle.UnpicklingError, match=r'refers to \w+\.system'):
        load(evil)
    assert not executed(evil)
    assert load(NUMPY_1_FILE)['meta']['best'] == 71.5


def test_another_thread_loads_what_it_trusts(tmp_path):
    """While a checkpoint is being loaded, which may take minutes."""
    own = tmp_path / 'own.pth'
    torch.save(Reduced(os.path.join, 'a', 'b'), own)
    found = []

    @CheckpointLoader.register_scheme(prefixes='slow:', force=True)
    def load_slowly(filename, map_location):
        thread = threading.Thread(target=lambda: found.append(
            torch.load(own, weights_only=False)))
        thread.start()
        thread.join()
        return torch.load(filename[5:], map_location=map_location,
                          weights_only=False)

    try:
        assert load(f'slow:{NUMPY_1_FILE}')['meta']['best'] == 71.5
        assert found == [os.path.join('a', 'b')]
        with pytest.raises(pickle.UnpicklingError, match='refers to'):
            load(f'slow:{own}')
    finally:
        del CheckpointLoader._schemes['slow:']


@only_where_safe
def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / 'page.pth'
    path.write_text('<html>not found</html>')
    with pytest.raises(pickle.UnpicklingError, match=f'^{path} cannot be '
                       'loaded as a checkpoint: Unsupported operand 60$'):
        load(path)


def test_downloads_are_treated_alike(evil, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'good.pth').symlink_to(NUMPY_1_FILE)
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0),
        functools.partial(
            http.server.SimpleHTTPRequestHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f'http://127.0.0.1:{server.server_port}'
        assert load(f'{address}/good.pth')['state_dict']
        with pytest.raises(
                pickle.UnpicklingError, match=r'evil\.pth was not'):
            load(f'{address}/evil.pth')
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not executed(evil)
