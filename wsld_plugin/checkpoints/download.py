"""Fetch checkpoints from a model zoo, whole and verified or not at all."""
from __future__ import annotations

import errno
import hashlib
import http.client
import os
import random
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.utils import get_installed_path
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..version import __version__
from .loading import CheckpointError

# What OpenMMLab and torchvision put into the name of a published file: the
# beginning of its SHA-256. Eight digits may also be a date, which no hash of
# theirs looks like but once in a million.
_DIGEST = re.compile(r'-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$')
# How the two formats of torch.save begin: a zip archive, a pickle.
_BEGINNINGS = (b'PK\x03\x04', b'\x80')
# Failures in a row without a byte more than ever before.
_ATTEMPTS = 5
# Wait before the second attempt, in seconds; doubles with each.
_BACK_OFF = 1.0
# Of a connection that says nothing, in seconds.
_TIMEOUT = 30.0
_CHUNK = 1 << 18
# The file system cannot lock: some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DownloadError(CheckpointError):
    """A checkpoint cannot be had; the message says what to do."""


class UnknownModelError(CheckpointError):
    """A name or address under which no checkpoint is published."""


class _InterruptedError(Exception):
    """An attempt failed in a way that another one may not."""


def download_checkpoint(name_or_url: str,
                        out: str | os.PathLike[str] | None = None,
                        *,
                        mirror: str | None = None,
                        offline: bool = False) -> Path:
    """Fetch a checkpoint, unless it is there already and sound.

    The file is compared with the hash in its name (``-f257d4e6.pth``: the
    beginning of its SHA-256), when it is downloaded and each time it is
    reused. It appears under its name complete and verified or not at all;
    until then it is a ``.part``, from which an interrupted download goes on.
    Of several processes one downloads and the others wait.

    Args:
        name_or_url: Name of a model of this package's or of mmpretrain's
            (``resnet34_8xb32_in1k``), ``torchvision://resnet34``, or a URL.
        out: Folder for the file. By default ``$MMENGINE_HOME/checkpoints``
            or else torch's, ``$TORCH_HOME/hub/checkpoints``; a file with no
            hash in its name gets a folder of its own there.
        mirror: What stands in for the scheme and host of the URL, such as
            ``https://mirror.example/openmmlab``.
        offline: Fail rather than touch the network.

    Returns:
        Path of the file.

    Raises:
        UnknownModelError: As :func:`checkpoint_url`, and if the URL names
            no file.
        ValueError: If the mirror is not of http or https.
        DownloadError: If the file cannot be had.
    """
    url = checkpoint_url(name_or_url)
    path = _place(url, out)
    fault = _fault(path)
    if fault is None:
        return path
    if offline:
        raise DownloadError(f'offline: {path} {fault}; fetch {url} elsewhere '
                            'and put it there')
    source = url if mirror is None else _mirrored(url, mirror)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path) as part:
            # Another process may have had the part before.
            if _fault(path) is not None:
                if path.exists():
                    print_log(f'{path} {fault}; replacing it.', 'current')
                _fetch(source, part, path.name)
                os.replace(part.name, path)
    except DownloadError as error:
        raise DownloadError(
            f'{source}: {error}; fetch {url} by other means and put it at '
            f'{path}') from error
    except OSError as error:
        raise DownloadError(f'cannot write {path}: {error}') from error
    return path


def checkpoint_url(name_or_url: str) -> str:
    """Where the weights of a model are published.

    Args:
        name_or_url: As for :func:`download_checkpoint`.

    Returns:
        The URL; of a URL itself.

    Raises:
        UnknownModelError: If there is no such model, it has no published
            weights, or the URL is not of http or https.
    """
    scheme, found, name = name_or_url.partition('://')
    urls: dict[str, str | None]
    if not found:
        name = name_or_url.lower()
        urls = _published_models()
    elif scheme in ('http', 'https'):
        return name_or_url
    elif scheme == 'torchvision':
        from mmengine.runner.checkpoint import get_torchvision_models
        urls = get_torchvision_models()
    else:
        raise UnknownModelError(f'name_or_url={name_or_url}: expected '
                                'http://, https:// or torchvision://')
    if name not in urls:
        similar = get_close_matches(name, urls)
        raise UnknownModelError(
            f'name_or_url={name_or_url}: neither a URL nor the name of a '
            'model' + (f'; similar: {", ".join(similar)}' if similar else ''))
    url = urls[name]
    if not url:
        raise UnknownModelError(f'name_or_url={name_or_url}: a model without '
                                'published weights')
    return url


@CheckpointLoader.register_scheme(
    prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Load the checkpoint at a URL: mmengine's loader for http and https.

    Args:
        filename: The URL.
        map_location: As for :func:`torch.load`.

    Returns:
        What the file holds.

    Raises:
        DownloadError: If the file cannot be had.
    """
    return torch.load(download_checkpoint(filename), map_location=map_location)


@CheckpointLoader.register_scheme(prefixes='torchvision://', force=True)
def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load torchvision's weights by name: mmengine's loader for them.

    Args:
        filename: ``torchvision://`` and a name that mmengine knows.
        map_location: As for :func:`torch.load`.

    Returns:
        The state dict, named as torchvision names it.

    Raises:
        UnknownModelError: If there is no such name.
        DownloadError: If the file cannot be had.
    """
    return load_from_http(checkpoint_url(filename), map_location)


def _published_models() -> dict[str, str | None]:
    """URLs of the weights of mmpretrain's and our models, by name."""
    from modelindex.load_model_index import load
    package = Path(__file__).parents[1]
    installed = package / '.mim' / 'model-index.yml'
    ours = installed if installed.exists() else (
        package.parent / 'model-index.yml')
    theirs = Path(
        get_installed_path('mmpretrain')) / '.mim' / 'model-index.yml'
    return {
        model.name.lower(): model.weights
        for index in (theirs, ours) for model in load(str(index)).models
    }


def _place(url: str, out: str | os.PathLike[str] | None) -> Path:
    """Path of a URL's file."""
    name = urllib.parse.unquote(
        urllib.parse.urlsplit(url).path.rpartition('/')[2])
    if name in ('', '.', '..') or '/' in name:
        raise UnknownModelError(f'name_or_url={url}: names no file')
    if out is not None:
        return Path(out).expanduser() / name
    home = os.environ.get('MMENGINE_HOME') or torch.hub.get_dir()
    cache = Path(home).expanduser() / 'checkpoints'
    if _DIGEST.search(name) is None:
        # `teacher.pth` of two places are two files.
        cache /= hashlib.sha256(url.encode()).hexdigest()[:8]
    return cache / name


def _mirrored(url: str, mirror: str) -> str:
    """The URL below a mirror."""
    if not mirror.startswith(('http://', 'https://')):
        raise ValueError(f'mirror={mirror}: expected http:// or https://')
    parts = urllib.parse.urlsplit(url)
    below = urllib.parse.urlunsplit(('', '', parts.path, parts.query, ''))
    return mirror.rstrip('/') + below


def _fault(path: Path, name: str | None = None) -> str | None:
    """What keeps a file from being used.

    Args:
        path: The file, which may be missing.
        name: The name that holds its hash, if not its own.

    Returns:
        The end of a sentence about the file; None if it may be used.
    """
    if not path.is_file():
        return 'is missing'
    with path.open('rb') as file:
        start = file.read(4)
        if not start.startswith(_BEGINNINGS):
            return f'is no checkpoint (it starts with {start!r})'
        found = _DIGEST.search(name or path.name)
        if found is None:
            # A zip archive ends with its table of contents.
            if start.startswith(b'PK') and not zipfile.is_zipfile(path):
                return 'is cut off'
            return None
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(found[1]):
        return (f'is damaged: its SHA-256 is {digest.hexdigest()[:16]}..., '
                f'expected {found[1]}...')
    return None


@contextmanager
def _part_of(path: Path) -> Iterator[BinaryIO]:
    """The unfinished file, held by one process at a time.

    The part is its own lock: whoever waited for it finds it gone or renamed
    and looks again.
    """
    name = f'{path}.part'
    while True:
        part = _open(name)
        if not _lock(part, path):
            # Nobody else may write into the next one.
            if not os.fstat(part.fileno()).st_size:
                Path(name).unlink(missing_ok=True)
            part.close()
            name = f'{path}.{socket.gethostname()}.{os.getpid()}.part'
            part = _open(name)
        if os.path.exists(name) and os.path.samestat(
                os.fstat(part.fileno()), os.stat(name)):
            break
        part.close()
    with part:
        try:
            yield part
        finally:
            part.flush()
            # Of an empty part nothing can be resumed.
            if not os.fstat(part.fileno()).st_size:
                os.unlink(name)


def _open(name: str) -> BinaryIO:
    """Open a file to read and write, made if missing."""
    return open(
        name,
        'r+b',
        opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))


def _lock(part: BinaryIO, path: Path) -> bool:
    """Wait for the lock on a part; False where there are none."""
    # Not on Windows, where the rest of the package can be imported.
    import fcntl
    try:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_log(f'Waiting for another process that fetches {path}.',
                      'current')
            fcntl.flock(part, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _fetch(url: str, part: BinaryIO, name: str) -> None:
    """Complete a part and verify it.

    Args:
        url: Where the file is.
        part: What there is of it, possibly nothing.
        name: The file's final name.

    Raises:
        DownloadError: If that fails; a part that cannot be resumed is empty
            then.
    """
    resumed = part.seek(0, os.SEEK_END) > 0
    if resumed and _DIGEST.search(name) is None:
        # Nothing would tell whether it is of the same file.
        part.truncate(0)
        resumed = False
    if resumed and _fault(Path(part.name), name) is None:
        return
    print_log(f'Downloading {url}', 'current')
    while True:
        with _progress() as bar:
            _Transfer(url, part, name, bar).run()
        part.flush()
        fault = _fault(Path(part.name), name)
        if fault is None:
            return
        part.truncate(0)
        if not resumed:
            raise DownloadError(f'the file {fault}')
        # The beginning was of another file.
        resumed = False


def _progress() -> Progress:
    """A progress bar on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty())


class _Transfer:
    """One download, over as many connections as it takes."""

    def __init__(self, url: str, part: BinaryIO, name: str,
                 bar: Progress) -> None:
        self._url = url
        self._part = part
        self._by_hash = _DIGEST.search(name) is not None
        self._bar = bar
        self._task = bar.add_task(name, total=None)
        # Which version of the file the part is of, in the server's words.
        self._version = ''

    def run(self) -> None:
        """Receive all of the file.

        Raises:
            DownloadError: If the server refuses, or fails too often.
        """
        most = self._part.seek(0, os.SEEK_END)
        failures = 0
        while True:
            try:
                self._attempt()
                return
            except _InterruptedError as error:
                size = self._part.seek(0, os.SEEK_END)
                failures = 1 if size > most else failures + 1
                most = max(most, size)
                if failures >= _ATTEMPTS:
                    raise DownloadError(
                        f'{error}, {failures} times in a row') from error
                wait = _BACK_OFF * 2**(failures - 1) * random.uniform(0.5, 1.5)
                print_log(f'{error}; next attempt in {wait:.1f} s.', 'current')
            time.sleep(wait)

    def _attempt(self) -> None:
        """Ask for what is missing and take it in."""
        have = self._part.seek(0, os.SEEK_END)
        headers = {'User-Agent': f'wsld_plugin/{__version__}'}
        if have and (self._by_hash or self._version):
            headers['Range'] = f'bytes={have}-'
            if self._version:
                headers['If-Range'] = self._version
        request = urllib.request.Request(self._url, headers=headers)
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, 'reason', error)
            said = f'no answer: {reason or type(reason).__name__}'
            # A second attempt would find the same.
            if isinstance(reason, (ConnectionRefusedError, socket.gaierror,
                                   ssl.SSLCertVerificationError)):
                raise DownloadError(said) from error
            raise _InterruptedError(said) from error
        else:
            with response:
                self._take(response, have)

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        """Tell what may pass from what will not.

        Raises:
            _InterruptedError: If it may pass.
            DownloadError: If not.
        """
        said = f'the server says {error.code} {error.reason}'
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The part is longer than the file, so it is of another one.
            self._part.truncate(0)
        elif error.code < 500 and error.code not in (
                http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS):
            raise DownloadError(said) from error
        raise _InterruptedError(said) from error

    def _take(self, response: http.client.HTTPResponse, have: int) -> None:
        """Append a response to the part, or replace the part by it."""
        if response.status == http.client.PARTIAL_CONTENT:
            start = re.match(r'bytes (\d+)-',
                             response.headers.get('Content-Range', ''))
            if start is None or int(start[1]) != have or (
                    self._version and _version(response) != self._version):
                self._part.truncate(0)
                raise _InterruptedError('the server sent another part')
        elif response.status == http.client.OK:
            have = 0
        else:
            raise DownloadError(f'the server says {response.status} '
                                f'{response.reason}')
        length = response.headers.get('Content-Length', '')
        total = have + int(length) if length.isdigit() else None
        chunk = _read(response)
        if have == 0:
            kind = response.headers.get_content_type()
            if kind == 'text/html' or (chunk and
                                       not chunk.startswith(_BEGINNINGS)):
                raise DownloadError(
                    f'the server sent no checkpoint but {kind} that starts '
                    f'with {chunk[:16]!r}')
            self._part.truncate(0)
        self._version = _version(response)
        size = self._part.seek(have)
        self._bar.update(self._task, total=total, completed=size)
        while chunk:
            size += self._part.write(chunk)
            self._bar.update(self._task, completed=size)
            chunk = _read(response)
        if total is not None and size < total:
            raise _InterruptedError(
                f'the connection closed after {size} of {total} bytes')


def _read(response: http.client.HTTPResponse) -> bytes:
    """Next bytes, none at the end."""
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(
            'the connection broke: '
            f'{str(error) or type(error).__name__}') from error


def _version(response: http.client.HTTPResponse) -> str:
    """What If-Range may compare: a strong tag, or the date."""
    tag = response.headers.get('ETag', '')
    if tag and not tag.startswith('W/'):
        return tag
    return response.headers.get('Last-Modified', '')
