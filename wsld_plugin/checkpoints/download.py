"""Fetch checkpoints from a model zoo, whole and verified or not at all."""
from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from difflib import get_close_matches
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
from mmengine.utils import get_installed_path
from rich.progress import wrap_file

from .loading import CheckpointError, fault_of

# What OpenMMLab and torchvision put into the name of a published file: the
# beginning of its SHA-256. Eight digits may also be a date, which no hash of
# theirs looks like but once in a million.
_DIGEST = re.compile(r'-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$')
_TIMEOUT = 30.0  # seconds of silence
_BROKEN = (HTTPException, URLError, ConnectionError, SSLError, timeout)


class DownloadError(CheckpointError, OSError):
    """A checkpoint cannot be had."""


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
            or else ``$TORCH_HOME/hub/checkpoints``, and there a folder of
            its own for a file with no hash in its name.
        mirror: What stands in for the URL's scheme and host.
        offline: Fail rather than touch the network.

    Raises:
        CheckpointError: If no such file is known, can be had or written.
    """
    url = source = checkpoint_url(name_or_url)
    path = _place(url, out)
    fault = _fault(path, path.name)
    if fault is None:
        return path
    if offline:
        raise DownloadError(f'offline: {path} {fault}; fetch {url} elsewhere '
                            'and put it there')
    if mirror is not None:
        if not mirror.startswith(('http://', 'https://')):
            raise DownloadError(f'mirror={mirror}: expected http:// or '
                                'https://')
        below = urlunsplit(('', '', *urlsplit(url)[2:]))
        source = mirror.rstrip('/') + below
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'.{path.name}.lock')):
            # Another process may have had the lock before.
            if _fault(path, path.name) is not None:
                print_log(f'Downloading {source}', 'current')
                _fetch(source, path)
    except (DownloadError, *_BROKEN) as error:
        raise DownloadError(
            f'cannot download {source}: {error}; fetch {url} by other means '
            f'and put it at {path}') from error
    except OSError as error:
        raise DownloadError(f'cannot write {path}: {error}') from error
    return path


@CheckpointLoader.register_scheme(
    prefixes=('http://', 'https://', 'torchvision://'), force=True)
def load_from_zoo(filename: str, map_location: Any = None) -> Any:
    """Load the checkpoint at a URL, for mmengine."""
    return torch.load(download_checkpoint(filename), map_location=map_location)


def _place(url: str, out: str | os.PathLike[str] | None) -> Path:
    """Path of a URL's file."""
    name = Path(unquote(urlsplit(url).path)).name
    if name in ('', '..'):
        raise CheckpointError(f'name_or_url={url}: names no file')
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
    fault, wanted = fault_of(path), _DIGEST.search(name)
    if fault is not None or wanted is None:
        return fault
    # Into memory, where torch.load will have it, too.
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return None if found.startswith(wanted[1]) else (
        f'is damaged: its SHA-256 is {found[:16]}..., expected {wanted[1]}...')


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed where one failed."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return isinstance(error, _BROKEN) and not isinstance(
        getattr(error, 'reason', None),
        (ConnectionRefusedError, gaierror, SSLCertVerificationError))


@tenacity.retry(
    retry=tenacity.retry_if_exception(_may_pass),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random_exponential(max=20),
    reraise=True)
def _fetch(url: str, path: Path) -> None:
    """Download and verify a file, which nobody else writes meanwhile."""
    part = path.with_name(f'.{path.name}.part')
    request = Request(url, headers={'User-Agent': 'wsld_plugin'})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response, part.open(
                'wb') as file:
            total = int(response.headers.get('Content-Length') or 0)
            with wrap_file(response, total, description=path.name,
                           disable=not sys.stderr.isatty()) as body:
                shutil.copyfileobj(body, file)
            if file.tell() < total:
                raise ConnectionError(
                    f'closed after {file.tell()} of {total} bytes')
        fault = _fault(part, path.name)
        if fault is not None:
            raise DownloadError(f'what the server sent {fault}')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def checkpoint_url(name_or_url: str) -> str:
    """Where the weights of a model are published.

    Args:
        name_or_url: Name of a model of this package's or of mmpretrain's
            (``resnet34_8xb32_in1k``), ``torchvision://resnet34``, or a URL,
            which is returned.

    Raises:
        CheckpointError: If no weights are published under that name.
    """
    if name_or_url.startswith(('http://', 'https://')):
        return name_or_url
    scheme, _, name = name_or_url.rpartition('://')
    if scheme == 'torchvision':
        from mmengine.runner.checkpoint import get_torchvision_models
        urls = get_torchvision_models()
    else:
        name, urls = name_or_url.lower(), _published_models()
    if name not in urls:
        similar = ', '.join(get_close_matches(name, urls)) or 'none'
        raise CheckpointError(
            f'name_or_url={name_or_url}: expected http://, https://, '
            'torchvision://NAME or the name of a model with published '
            f'weights; similar: {similar}')
    return urls[name]


def _published_models() -> dict[str, str]:
    """URLs of the weights of mmpretrain's and our models, by name."""
    from modelindex.load_model_index import load
    package = Path(__file__).parents[1]
    theirs = Path(get_installed_path('mmpretrain'))
    return {
        model.name.lower(): model.weights
        for folder in (theirs / '.mim', package.parent, package / '.mim')
        if (folder / 'model-index.yml').exists()
        for model in load(str(folder / 'model-index.yml')).models
        if model.weights
    }
