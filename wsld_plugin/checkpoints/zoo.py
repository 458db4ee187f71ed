"""Where the weights of models are published."""
from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from mmengine.utils import get_installed_path

from .loading import CheckpointError


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
