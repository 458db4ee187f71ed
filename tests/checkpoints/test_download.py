"""Downloads from a real server on loopback that behaves badly."""
from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from wsld_plugin.checkpoints import (
    DownloadError,
    checkpoint_url,
    download,
    download_checkpoint,
)

ROOT = Path(__file__).parents[2]
# Far more than the sockets of a connection hold back.
WEIGHTS = {'weight': torch.arange(50_000, dtype=torch.float32)}


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


DATA = saved(WEIGHTS)
OTHER = saved({'weight': torch.zeros(50_000)})
HALF = len(DATA) // 2
NAME = f'net_20210831-{hashlib.sha256(DATA).hexdigest()[:8]}.pth'
HTML = b'<!DOCTYPE html><title>Please log in</title>' * 50


class Server(ThreadingHTTPServer):
    """Serves DATA under any path; `faults` are had one a request."""

    daemon_threads = True
    # A request that was given up by the client is no news.
    def handle_error(self, *args: Any) -> None:
        pass

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.data = DATA
        self.tag = '"1"'
        self.faults: list[dict[str, Any]] = []
        # Method path, Range and If-Range of each request.
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.slow: threading.Event | None = None
        self.url = f'http://127.0.0.1:{self.server_port}/'

    @property
    def ranges(self) -> list[str | None]:
        return [request[1] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, headers = self.server, self.headers
        server.requests.append(
            (self.path, headers['Range'], headers['If-Range']))
        fault = server.faults.pop(0) if server.faults else {}
        if 'silent' in fault:
            time.sleep(fault['silent'])
            return
        if 'to' in fault:
            self.send_response(fault.get('status', 302))
            self.send_header('Location', fault['to'])
            self.end_headers()
            return
        if fault.get('status', 200) >= 400:
            self.send_error(fault['status'])
            return
        data = fault.get('data', server.data)
        start = 0
        wanted = re.fullmatch(r'bytes=(\d+)-', headers['Range'] or '')
        if wanted and not fault.get('whole') and (
                headers['If-Range'] in (None, server.tag)):
            start = int(wanted[1])
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                'Content-Range', f'bytes {start + fault.get("shift", 0)}-'
                f'{len(data) - 1}/{len(data)}')
        if fault.get('length', True):
            self.send_header('Content-Length',
                             str(fault.get('says', len(data) - start)))
        self.send_header('ETag', server.tag)
        self.send_header('Content-Type',
                         fault.get('type', 'application/octet-stream'))
        self.end_headers()
        end = min(start + fault.get('drop', len(data)), len(data))
        for at in range(start, end, 8192):
            self.wfile.write(data[at:min(at + 8192, end)])
            if server.slow is not None:
                server.slow.wait(0.002)
            time.sleep(fault.get('pause', 0))


@pytest.fixture
def server(tmp_path: Path,
           monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download, '_BACK_OFF', 0.001)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01, ))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download_and_cache_hit(server: Server, tmp_path: Path) -> None:
    path = download_checkpoint(server.url + 'zoo/' + NAME)
    assert path == tmp_path / 'home' / 'checkpoints' / NAME
    assert files(path.parent) == {NAME: DATA}
    assert download_checkpoint(server.url + 'zoo/' + NAME) == path
    assert server.requests == [(f'/zoo/{NAME}', None, None)]
    elsewhere = download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert files(elsewhere.parent) == {NAME: DATA}


def test_torch_cache_is_used_without_mmengine_home(
        server: Server, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('MMENGINE_HOME')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = download_checkpoint(server.url + NAME)
    assert path == tmp_path / 'hub' / 'checkpoints' / NAME


# Each list of faults ends in success; with the ranges that are asked for.
RECOVERIES: dict[str, tuple[list[dict[str, Any]], list[str | None]]] = {
    'drops twice': ([{'drop': 10_000}, {'drop': 20_000}],
                    [None, 'bytes=10000-', 'bytes=30000-']),
    'drops at once': ([{'drop': 0}], [None, None]),
    'drops, then has no ranges': ([{'drop': HALF}, {'whole': True}],
                                  [None, f'bytes={HALF}-']),
    'drops, then sends another range':
    ([{'drop': HALF}, {'shift': 1}], [None, f'bytes={HALF}-', None]),
    'drops seven times': ([{'drop': 1000}] * 7,
                          [None, *(f'bytes={n}000-' for n in range(1, 8))]),
    'too long by its length, once': ([{'says': len(DATA) + 9}],
                                     [None, f'bytes={len(DATA)}-', None]),
    'no length': ([{'length': False}], [None]),
    '503 four times': ([{'status': 503}] * 4, [None] * 5),
    '408, 429 and 500': ([{'status': status} for status in (408, 429, 500)],
                         [None] * 4),
    'silence': ([{'silent': 6}], [None, None]),
    'slow': ([{'pause': 0.005}], [None]),
    'redirects': ([{'to': '/a', 'status': 301}, {'to': '/b'},
                   {'to': f'/c/{NAME}', 'status': 307}], [None] * 4),
    'drops, then redirects': ([{'drop': HALF}, {'to': '/b'}],
                              [None, *[f'bytes={HALF}-'] * 2]),
}


@pytest.mark.parametrize('name', RECOVERIES)
def test_recovery(name: str, server: Server, tmp_path: Path,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    if name == 'silence':
        monkeypatch.setattr(download, '_TIMEOUT', 2.0)
    server.faults, ranges = list(RECOVERIES[name][0]), RECOVERIES[name][1]
    download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert files(tmp_path / 'out') == {NAME: DATA}
    assert server.ranges == ranges
    assert server.faults == []
    # A range is of the version that the first bytes were of.
    assert {request[2] for request in server.requests if request[1]
            } <= {'"1"'}


# With what the error says, the requests made, and whether a part stays.
FAILURES: dict[str, tuple[list[dict[str, Any]], str, int, bool]] = {
    '404': ([{'status': 404}], 'the server says 404 Not Found;', 1, False),
    '403': ([{'status': 403}], 'the server says 403', 1, False),
    '503': ([{'status': 503}] * 5, '503 Service Unavailable, 5 times', 5,
            False),
    'drops at once': ([{'drop': 0}] * 5, f'after 0 of {len(DATA)} bytes', 5,
                      False),
    'drops at the same byte': (
        [{'drop': HALF}, *[{'drop': 0}] * 4],
        f'after {HALF} of {len(DATA)} bytes, 5 times', 5, True),
    'too short by its length': ([{'says': HALF}], 'is damaged: its SHA-256',
                                1, False),
    'altered': ([{'data': OTHER}], r'expected \w{8}\.\.\.;', 1, False),
    'HTML': ([{'data': HTML, 'type': 'text/html; charset=utf-8'}],
             "sent no checkpoint but text/html that starts with b'<!DOCTYPE",
             1, False),
    'disguised HTML': ([{'data': HTML}], "octet-stream that starts with b'<!",
                       1, False),
    'redirects in a circle': ([{'to': f'/{NAME}'}] * 20, '302', 5, False),
    'redirect to a file': ([{'to': 'file:///etc/passwd'}], '302', 1, False),
    'nothing': ([{'data': b'', 'length': False}], 'is no checkpoint', 1,
                False),
}


@pytest.mark.parametrize('name', FAILURES)
def test_failure(name: str, server: Server, tmp_path: Path) -> None:
    faults, message, requests, resumable = FAILURES[name]
    server.faults = list(faults)
    good = tmp_path / 'out' / f'other-{hashlib.sha256(OTHER).hexdigest()}.pth'
    good.parent.mkdir()
    good.write_bytes(OTHER)
    with pytest.raises(DownloadError, match=message) as caught:
        download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert str(caught.value).endswith(
        f'; fetch {server.url}{NAME} by other means and put it at '
        f'{tmp_path}/out/{NAME}')
    left = files(tmp_path / 'out')
    assert left.pop(good.name) == OTHER
    assert left == ({f'{NAME}.part': DATA[:HALF]} if resumable else {})
    if 'circle' not in name:
        assert len(server.requests) == requests
    server.faults = []
    download_checkpoint(server.url + NAME, tmp_path / 'out')
    assert server.ranges[-1] == (f'bytes={HALF}-' if resumable else None)
    assert (tmp_path / 'out' / NAME).read_bytes() == DATA


# What lies there, and what is asked of the server.
PARTS: dict[str, tuple[bytes, list[str | None]]] = {
    'half': (DATA[:HALF], [f'bytes={HALF}-']),
    'all': (DATA, []),
    'of another file': (OTHER[:HALF], [f'bytes={HALF}-', None]),
    'longer than the file': (OTHER + DATA, [
        f'bytes={len(OTHER + DATA)}-', None]),
}


@pytest.mark.parametrize('name', PARTS)
def test_part_left_by_another_run(name: str, server: Server,
                                  tmp_path: Path) -> None:
    part, ranges = PARTS[name]
    (tmp_path / f'{NAME}.part').write_bytes(part)
    path = download_checkpoint(server.url + NAME, tmp_path)
    assert path.read_bytes() == DATA
    assert not (tmp_path / f'{NAME}.part').exists()
    assert server.ranges == ranges


def test_part_survives_a_login_page(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f'{NAME}.part'
    part.write_bytes(DATA[:HALF])
    server.faults = [{'data': HTML, 'whole': True}]
    with pytest.raises(DownloadError, match='no checkpoint'):
        download_checkpoint(server.url + NAME, tmp_path)
    assert part.read_bytes() == DATA[:HALF]


def test_file_that_changes_meanwhile(server: Server, tmp_path: Path) -> None:
    # The tag of the second answer is of another version.
    server.faults = [{'drop': HALF}]
    server.data = OTHER

    class Changing(list):

        def append(self, request: Any) -> None:
            super().append(request)
            if len(self) == 2:
                server.data, server.tag = DATA, '"2"'

    server.requests = Changing()
    path = download_checkpoint(server.url + 'teacher.pth', tmp_path)
    assert path.read_bytes() == DATA
    assert server.requests[1] == ('/teacher.pth', f'bytes={HALF}-', '"1"')


def test_damaged_file_is_replaced_and_never_used(server: Server,
                                                 tmp_path: Path) -> None:
    path = tmp_path / NAME
    for damaged in (DATA[:-1], DATA[:HALF] + b'!' + DATA[HALF + 1:], HTML,
                    b''):
        path.write_bytes(damaged)
        with pytest.raises(DownloadError, match=rf'offline: {path} is .*put'):
            download_checkpoint(server.url + NAME, tmp_path, offline=True)
        server.faults = [{'data': OTHER}]
        with pytest.raises(DownloadError, match='is damaged'):
            download_checkpoint(server.url + NAME, tmp_path)
        assert path.read_bytes() == damaged
        download_checkpoint(server.url + NAME, tmp_path)
        assert files(tmp_path) == {NAME: DATA}


def test_names_without_a_hash(server: Server, tmp_path: Path) -> None:
    # A date is no hash.
    for name in ('teacher.pth', 'net-20211222.pth'):
        first = download_checkpoint(f'{server.url}a/{name}?version=1')
        server.data = OTHER
        second = download_checkpoint(f'{server.url}b/{name}')
        assert (first.name, second.name) == (name, name)
        assert first.read_bytes() == DATA and second.read_bytes() == OTHER
        server.data = DATA
        assert download_checkpoint(f'{server.url}a/{name}?version=1') == first
        # All that is known of them.
        for fault in ({'data': HTML}, {'says': HALF}):
            server.faults = [fault]
            with pytest.raises(DownloadError, match=r'no checkpoint|cut off'):
                download_checkpoint(f'{server.url}c/{name}')
    (tmp_path / 'teacher.pth.part').write_bytes(OTHER[:HALF])
    path = download_checkpoint(f'{server.url}teacher.pth', tmp_path)
    assert path.read_bytes() == DATA
    assert server.ranges[-1] is None


def test_waits_grow_and_vary(server: Server, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, '_BACK_OFF', 1.0)
    waits: list[float] = []
    monkeypatch.setattr(download, 'time', SimpleNamespace(sleep=waits.append))
    server.faults = [{'status': 503}] * 4
    download_checkpoint(server.url + NAME, tmp_path)
    assert len(set(waits)) == 4
    assert all(0.5 <= wait / 2**n <= 1.5 for n, wait in enumerate(waits))


def test_no_connection_fails_at_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '*')
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/{NAME}'
        with pytest.raises(DownloadError, match='Connection refused'):
            download_checkpoint(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_mirror(server: Server, tmp_path: Path) -> None:
    url = f'https://models.invalid/zoo/v0/{NAME}?version=1'
    download_checkpoint(url, tmp_path, mirror=f'{server.url}mirror/')
    assert server.requests[0][0] == f'/mirror/zoo/v0/{NAME}?version=1'
    # The same file for who asks without.
    assert download_checkpoint(url, tmp_path, offline=True).exists()
    with pytest.raises(ValueError, match='mirror=here: expected http'):
        download_checkpoint(url, tmp_path / 'new', mirror='here')


def test_offline_names_the_file_and_its_place(server: Server,
                                              tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download_checkpoint(server.url + NAME, offline=True)
    path = tmp_path / 'home' / 'checkpoints' / NAME
    assert str(caught.value) == (
        f'offline: {path} is missing; fetch {server.url}{NAME} elsewhere '
        'and put it there')
    assert server.requests == [] and not path.parent.exists()
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert download_checkpoint(server.url + NAME, offline=True) == path


def test_names_of_models() -> None:
    zoo = 'https://download.openmmlab.com/'
    assert checkpoint_url('ResNet34_8xb32_in1k') == (
        f'{zoo}mmclassification/v0/resnet/'
        'resnet34_8xb32_in1k_20210831-f257d4e6.pth')
    published = checkpoint_url('wsld_r34_r18_in1k-evalbn')
    assert published.startswith(f'{zoo}mmrazor/v1/wsld/')
    assert published.endswith('_acc-71.54_20211222-57925cbf.pth')
    assert checkpoint_url('torchvision://resnet34').endswith(
        '/resnet34-b627a593.pth')
    for name, hint in {'resnet34_8xb32': 'similar: resnet34_8xb32_in1k',
                       'torchvision://resnet3': 'similar: resnet34',
                       'file:///etc/passwd': 'expected http://'}.items():
        with pytest.raises(ValueError, match=f'name_or_url={name}.*{hint}'):
            checkpoint_url(name)
    with pytest.raises(ValueError, match='names no file'):
        download_checkpoint('http://127.0.0.1/', offline=True)


def start(*arguments: str) -> subprocess.Popen:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'download_checkpoints.py'),
         *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment)


def test_processes_at_once_and_one_killed(server: Server,
                                          tmp_path: Path) -> None:
    server.slow = threading.Event()
    server.data = data = saved({'weight': torch.rand(1_000_000)})
    name = f'net-{hashlib.sha256(data).hexdigest()}.pth'
    running = {}
    for _ in range(2):
        run = start(server.url + name, '--out', str(tmp_path))
        running[run.pid] = run
    deadline = time.monotonic() + 120
    part = tmp_path / f'{name}.part'
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Whichever it is that holds the part.
    locks = Path('/proc/locks').read_text()
    holder, = [pid for pid in running
               if re.search(rf'FLOCK\s.*WRITE {pid} .*:{part.stat().st_ino} ',
                            locks) and
               not re.search(rf'-> FLOCK\s.*WRITE {pid} .*:'
                             rf'{part.stat().st_ino} ', locks)]
    os.kill(holder, signal.SIGKILL)
    running.pop(holder).communicate()
    had = part.stat().st_size
    assert 0 < had < len(data)
    server.slow = None
    run, = running.values()
    out, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert out.splitlines()[-1] == f'{tmp_path}/{name}'
    assert files(tmp_path) == {name: data}
    # One began, the other went on.
    assert len(server.requests) == 2
    assert server.ranges[0] is None
    assert int(str(server.ranges[1])[len('bytes='):-1]) >= had


def test_full_disk(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(DownloadError, match=r'cannot write .* too large'):
            download_checkpoint(server.url + NAME, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.requests) == 1
    assert list(files(tmp_path)) == [f'{NAME}.part']
    # There is room again.
    download_checkpoint(server.url + NAME, tmp_path)
    assert files(tmp_path) == {NAME: DATA}
    assert server.ranges[1] is not None


def test_folder_that_cannot_be_written(server: Server,
                                       tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(DownloadError, match=f'cannot write {tmp_path}/file/'):
        download_checkpoint(server.url + NAME, tmp_path / 'file')
    assert server.requests == []


def test_file_system_without_locks(server: Server, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:

    def flock(*args: Any) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    # Somebody else's, who could not lock it either.
    (tmp_path / f'{NAME}.part').write_bytes(OTHER[:HALF])
    path = download_checkpoint(server.url + NAME, tmp_path)
    assert path.read_bytes() == DATA
    assert files(tmp_path) == {NAME: DATA, f'{NAME}.part': OTHER[:HALF]}
    path = download_checkpoint(server.url + NAME, tmp_path / 'new')
    assert files(path.parent) == {NAME: DATA}


def test_urls_in_configs(server: Server, tmp_path: Path) -> None:
    server.faults = [{'drop': HALF}, {'status': 503}]
    module = torch.nn.Module()
    module.register_buffer('weight', torch.zeros(50_000))
    load_checkpoint(module, server.url + NAME)
    assert torch.equal(module.weight, WEIGHTS['weight'])
    assert len(server.requests) == 3
    assert files(tmp_path / 'home' / 'checkpoints') == {NAME: DATA}


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'),
    reason='this torch loads whatever a file holds')
def test_downloads_are_not_run(server: Server) -> None:
    server.data = saved({'weight': Path('x')})
    with pytest.raises(pickle.UnpicklingError, match='was not loaded'):
        CheckpointLoader.load_checkpoint(server.url + 'x.pth')


RANKS = '''
import sys, torch.distributed as dist
from mmengine.runner import CheckpointLoader
import wsld_plugin
rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2],
                        rank=rank, world_size=2)
weights = CheckpointLoader.load_checkpoint(sys.argv[3])
print('sum', weights['weight'].double().sum().item())
dist.barrier()
'''


def test_ranks_download_once(server: Server, tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, '-c', RANKS, str(rank), str(tmp_path / 'store'),
             server.url + NAME],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
        for rank in range(2)
    ]
    total = WEIGHTS['weight'].double().sum().item()
    for run in runs:
        out, _ = run.communicate(timeout=120)
        assert run.returncode == 0, out
        assert f'sum {total}' in out
    assert len(server.requests) == 1
