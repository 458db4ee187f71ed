"""Fetch checkpoints from a model zoo, whole and verified or not at all."""
from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from http.client import HTTPException
from pathlib import Path
from socket import gaierror, timeout
from ssl import SSLCertVerificationError, SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import tenacity
import torch
from filelock import FileLock
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from rich.progress import wrap_file

from .loading import CheckpointError, fault_of
from .zoo import UnknownModelError, checkpoint_url

# What OpenMMLab and torchvision put into the name of a published file: the
# beginning of its SHA-256. Eight digits may also be a date, which no hash of
# theirs looks like but once in a million.
_DIGEST = re.compile(r'-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$')
# Of a connection that says nothing, in seconds.
_TIMEOUT = 30.0
_WAIT = tenacity.wait_random_exponential(max=20)


class DownloadError(CheckpointError, OSError):
    """A checkpoint cannot be had."""


class _PassingError(DownloadError):
    """An attempt failed in a way that another one may not."""


def download_checkpoint(name_or_url: str,
                        out: str | os.PathLike[str] | None = None,
                        *,
                        mirror: str | None = None,
                        offline: bool = False) -> Path:
    """Fetch a checkpoint, unless it is there already and sound.

    The file is compared with the hash in its name (``-f257d4e6.pth``: the
    beginning of its SHA-256), when it is downloaded and each time it is
    reused. It appears under its name complete and verified or not at all. Of
    several processes one downloads and the others wait.

    Args:
        name_or_url: As for :func:`checkpoint_url`.
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
        DownloadError: If the file cannot be had or written, or the mirror is
            not of http or https.
    """
    url = checkpoint_url(name_or_url)
    path = _place(url, out)
    fault = _fault(path, path.name)
    if fault is None:
        return path
    if offline:
        raise DownloadError(f'offline: {path} {fault}; fetch {url} elsewhere '
                            'and put it there')
    source = url
    if mirror is not None:
        if not mirror.startswith(('http://', 'https://')):
            raise DownloadError(f'mirror={mirror}: expected http:// or '
                                'https://')
        _, _, *below = urlsplit(url)
        source = mirror.rstrip('/') + urlunsplit(('', '', *below))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'.{path.name}.lock')):
            # Another process may have had the lock before.
            if _fault(path, path.name) is not None:
                print_log(f'Downloading {source}', 'current')
                _fetch(source, path)
    except DownloadError as error:
        raise DownloadError(
            f'cannot download {source}: {error}; fetch {url} by other means '
            f'and put it at {path}') from error
    except OSError as error:
        raise DownloadError(f'cannot write {path}: {error}') from error
    return path


@CheckpointLoader.register_scheme(
    prefixes=('http://', 'https://', 'torchvision://'), force=True)
def load_from_zoo(filename: str, map_location: Any = None) -> Any:
    """Load the checkpoint at a URL, for mmengine.

    Args:
        filename: The URL, or ``torchvision://`` and a name.
        map_location: As for :func:`torch.load`.
    """
    return torch.load(download_checkpoint(filename), map_location=map_location)


def _place(url: str, out: str | os.PathLike[str] | None) -> Path:
    """Path of a URL's file."""
    name = unquote(urlsplit(url).path.rpartition('/')[2])
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


def _fault(path: Path, name: str) -> str | None:
    """As :func:`fault_of`, and by the hash in a name."""
    fault = fault_of(path)
    wanted = _DIGEST.search(name)
    if fault is not None or wanted is None:
        return fault
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    return None if found.startswith(wanted[1]) else (
        f'is damaged: its SHA-256 is {found[:16]}..., expected {wanted[1]}...')


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(_PassingError),
    stop=tenacity.stop_after_attempt(5),
    wait=_WAIT,
    reraise=True)
def _fetch(url: str, path: Path) -> None:
    """Download and verify a file, which nobody else writes meanwhile."""
    part = path.with_name(f'.{path.name}.part')
    request = Request(url, headers={'User-Agent': 'wsld_plugin'})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response, part.open(
                'wb') as file:
            total = int(response.headers.get('Content-Length') or 0)
            with wrap_file(
                    response,
                    total,
                    description=path.name,
                    disable=not sys.stderr.isatty()) as body:
                shutil.copyfileobj(body, file)
            if file.tell() < total:
                raise _PassingError('the connection closed after '
                                    f'{file.tell()} of {total} bytes')
        fault = _fault(part, path.name)
        if fault is not None:
            raise DownloadError(f'what the server sent {fault}')
        part.replace(path)
    except HTTPError as error:
        passing = error.code >= 500 or error.code in (408, 429)
        raise (_PassingError if passing else DownloadError)(
            f'the server says {error.code} {error.reason}') from error
    except URLError as error:
        # A second attempt would find the same.
        final = isinstance(error.reason, (ConnectionRefusedError, gaierror,
                                          SSLCertVerificationError))
        raise (DownloadError if final else _PassingError)(
            f'no answer: {error.reason}') from error
    except (HTTPException, ConnectionError, SSLError, timeout) as error:
        raise _PassingError(
            f'the connection broke: {error or type(error).__name__}'
        ) from error
    finally:
        part.unlink(missing_ok=True)
