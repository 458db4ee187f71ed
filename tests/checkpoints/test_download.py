"""Downloads from a real server on loopback that behaves badly."""
from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tenacity
import torch
from mmengine.runner import CheckpointLoader
from test_loading import saved

from wsld_plugin.checkpoints import (
    CheckpointError,
    DownloadError,
    download,
    download_checkpoint,
)

ROOT = Path(__file__).parents[2]
WEIGHTS = {'weight': torch.arange(50_000, dtype=torch.float32)}


DATA = saved(WEIGHTS)
OTHER = saved({'weight': torch.zeros(50_000)})
HALF = len(DATA) // 2
NAME = f'net_20210831-{hashlib.sha256(DATA).hexdigest()[:8]}.pth'
HTML = b'<!DOCTYPE html><title>Please log in</title>' * 50
CUT = {'data': DATA[:HALF], 'says': len(DATA)}


class Server(ThreadingHTTPServer):
    """Serves DATA under any path; `faults` are had one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.faults: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.url = f'http://127.0.0.1:{self.server_port}/'

    def handle_error(self, *args: Any) -> None:
        """A request that was given up by the client is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults else {}
        data = fault.get('data', DATA)
        time.sleep(fault.get('silent', 0))
        self.send_response(fault.get('status', 200))
        says = fault.get('says', len(data))
        if says is not None:
            self.send_header('Content-Length', str(says))
        self.end_headers()
        for at in range(0, len(data), 8192):
            self.wfile.write(data[at:at + 8192])
            time.sleep(fault.get('pause', 0))


@pytest.fixture
def server(tmp_path: Path,
           monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download._fetch.retry, 'wait', tenacity.wait_none())
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01, ))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the locks that stay."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.suffix != '.lock'}


def test_download_and_cache_hit(server: Server, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    path = download_checkpoint(server.url + 'zoo/' + NAME)
    assert path == tmp_path / 'home' / 'checkpoints' / NAME
    assert files(path.parent) == {NAME: DATA}
    assert download_checkpoint(server.url + 'zoo/' + NAME) == path
    assert server.paths == [f'/zoo/{NAME}']
    elsewhere = download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert files(elsewhere.parent) == {NAME: DATA}
    # By mmengine's own loader, for URLs in configs.
    loaded = CheckpointLoader.load_checkpoint(server.url + NAME)
    assert torch.equal(loaded['weight'], WEIGHTS['weight'])
    assert len(server.paths) == 2
    monkeypatch.delenv('MMENGINE_HOME')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert download_checkpoint(server.url + NAME) == (
        tmp_path / 'hub' / 'checkpoints' / NAME)


@pytest.mark.parametrize('faults', [
    [CUT] * 4,
    [{'says': None}],
    [{'status': status} for status in (408, 429, 500, 503)],
    [{'silent': 2}],
], ids=['cut off', 'no length', 'overloaded', 'silent'])
def test_recovery(faults: list[dict[str, Any]], server: Server,
                  tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, '_TIMEOUT', 1.0)
    server.faults = list(faults)
    download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert files(tmp_path / 'out') == {NAME: DATA}
    assert server.faults == []


# With what the error says, and the requests made.
FAILURES: dict[str, tuple[list[dict[str, Any]], str, int]] = {
    '404': ([{'status': 404}], 'HTTP Error 404: Not Found;', 1),
    'cut': ([CUT] * 5, f'closed after {HALF} of {len(DATA)} bytes', 5),
    'short by its length': ([{'data': DATA[:HALF]}], 'sent is cut off', 1),
    'altered': ([{'data': OTHER}], r'SHA-256 is .*, expected \w{8}\.\.\.;', 1),
    'HTML': ([{'data': HTML}], "it starts with b'<!DOCTYPE html>", 1),
    'nothing': ([{'data': b'', 'says': None}], 'sent is empty', 1),
}


@pytest.mark.parametrize('name', FAILURES)
def test_failure(name: str, server: Server, tmp_path: Path) -> None:
    faults, message, requests = FAILURES[name]
    server.faults = list(faults)
    with pytest.raises(DownloadError, match=message) as caught:
        download_checkpoint(server.url + NAME, tmp_path)
    assert str(caught.value).endswith(
        f'; fetch {server.url}{NAME} by other means and put it at '
        f'{tmp_path}/{NAME}')
    assert files(tmp_path) == {}
    assert len(server.paths) == requests


@pytest.mark.parametrize('damaged', [
    DATA[:-1], DATA[:HALF] + b'!' + DATA[HALF + 1:], HTML, OTHER, b''])
def test_damaged_file_is_replaced_and_never_used(
        damaged: bytes, server: Server, tmp_path: Path) -> None:
    path, url = tmp_path / NAME, server.url + NAME
    path.write_bytes(damaged)
    with pytest.raises(DownloadError, match=f'offline: {path} is .*put it'):
        download_checkpoint(url, tmp_path, offline=True)
    server.faults = [{'data': OTHER}]
    with pytest.raises(DownloadError, match='is damaged'):
        download_checkpoint(url, tmp_path)
    # Not lost for nothing.
    assert files(tmp_path) == {NAME: damaged}
    download_checkpoint(url, tmp_path)
    assert files(tmp_path) == {NAME: DATA}


@pytest.mark.parametrize('name', ['teacher.pth', 'net-20211222.pth'])
def test_names_without_a_hash(name: str, server: Server) -> None:
    """A date is no hash."""
    server.faults = [{}, {'data': OTHER}, {'data': HTML},
                     {'data': DATA[:HALF]}]
    for place, content in (('a', DATA), ('b', OTHER)):
        path = download_checkpoint(f'{server.url}{place}/{name}?version=1')
        assert path.name == name and path.read_bytes() == content
    # All that is known of them.
    for message in ('no checkpoint', 'cut off'):
        with pytest.raises(DownloadError, match=message):
            download_checkpoint(f'{server.url}c/{name}')


def test_mirror(server: Server, tmp_path: Path) -> None:
    url = f'https://models.invalid/zoo/v0/{NAME}?version=1'
    download_checkpoint(url, tmp_path, mirror=f'{server.url}mirror/')
    assert server.paths == [f'/mirror/zoo/v0/{NAME}?version=1']
    # The same file for who asks without.
    assert download_checkpoint(url, tmp_path, offline=True).exists()
    with pytest.raises(DownloadError, match='mirror=here: expected http'):
        download_checkpoint(url, tmp_path / 'new', mirror='here')


def test_no_server_and_no_room(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match='Connection refused'):
        download_checkpoint(f'http://127.0.0.1:9/{NAME}', tmp_path / 'new')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(DownloadError, match=r'cannot write .* too large'):
            download_checkpoint(server.url + NAME, tmp_path / 'new')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path / 'new') == {}
    (tmp_path / 'file').touch()
    with pytest.raises(DownloadError, match=f'cannot write {tmp_path}/file/'):
        download_checkpoint(server.url + NAME, tmp_path / 'file')


# Names, and how their addresses end.
PUBLISHED = {
    'ResNet34_8xb32_in1k': 'download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet34_8xb32_in1k_20210831-f257d4e6.pth',
    'wsld_r34_r18_in1k-evalbn': '_acc-71.54_20211222-57925cbf.pth',
    'torchvision://resnet34': '/resnet34-b627a593.pth',
}


def test_tool_prints_paths_and_all_that_failed(
        server: Server, tmp_path: Path, call_tool: Callable[..., None],
        capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match='2'):
        call_tool('download_checkpoints.py', server.url + NAME,
                  'resnet34_8xb32', f'https://models.invalid/b/{NAME}',
                  '--out', tmp_path / 'out', '--mirror', server.url + 'm')
    out, error = capsys.readouterr()
    assert [line for line in out.splitlines() if line[0] == '/'] == 2 * [
        f'{tmp_path}/out/{NAME}']
    line, = [line for line in error.splitlines()
             if line.startswith('download_checkpoints.py: ')]
    assert 'name_or_url=resnet34_8xb32: expected' in line
    # Offline it says which file goes where.
    with pytest.raises(SystemExit, match='2'):
        call_tool('download_checkpoints.py', *PUBLISHED, '--offline')
    lines = re.findall(r'offline: (\S+) is missing; fetch (\S+) elsewhere and '
                       'put it there', capsys.readouterr().err)
    for (path, url), end in zip(lines, PUBLISHED.values()):
        assert Path(path) == tmp_path.joinpath(
            'home', 'checkpoints', url.rsplit('/')[-1])
        assert url.startswith('https://') and url.endswith(end)
    assert len(lines) == 3


@pytest.mark.parametrize('name, hint', [
    ('resnet34_8xb32', 'similar: resnet34_8xb32_in1k'),
    ('torchvision://resnet3', 'similar: resnet34'),
    ('file:///etc/passwd', 'expected http://'),
    ('http://127.0.0.1/', 'names no file'),
])
def test_unknown_names_are_told(name: str, hint: str) -> None:
    with pytest.raises(CheckpointError, match=f'name_or_url={name}.*{hint}'):
        download_checkpoint(name, offline=True)


PROCESS = '''
import sys
from wsld_plugin.checkpoints import read_checkpoint
print(read_checkpoint(sys.argv[1])['state_dict']['weight'].double().sum())
'''


def test_processes_fetch_once_and_one_is_killed(server: Server,
                                                tmp_path: Path) -> None:
    """As the ranks of a distributed run, which share nothing else."""

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, '-c', PROCESS, server.url + NAME],
            stdout=subprocess.PIPE, text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT)))

    server.faults = [{'pause': 0.1}, {'pause': 0.1}]
    killed = start()
    while not server.paths:
        assert killed.poll() is None
        time.sleep(0.01)
    runs = [start(), start()]
    killed.kill()
    killed.communicate()
    for run in runs:
        out, _ = run.communicate(timeout=120)
        assert f'{WEIGHTS["weight"].double().sum().item():.4e}' in out
    # One began, one of the others did it, the last waited.
    assert len(server.paths) == 2
    assert files(tmp_path / 'home' / 'checkpoints') == {NAME: DATA}
