"""Where the weights of models are published."""
from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from mmengine.utils import get_installed_path

from .loading import CheckpointError


class UnknownModelError(CheckpointError):
    """A name or address under which no checkpoint is published."""


def checkpoint_url(name_or_url: str) -> str:
    """Where the weights of a model are published.

    Args:
        name_or_url: Name of a model of this package's or of mmpretrain's
            (``resnet34_8xb32_in1k``), ``torchvision://resnet34``, or a URL.

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
