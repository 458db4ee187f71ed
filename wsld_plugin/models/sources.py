"""What the names of networks mean: libraries, zoos, configs and runs."""
from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from mmengine.config import Config

from ..checkpoints.loading import CheckpointError, read_checkpoint
from ..checkpoints.student import student_checkpoint, student_model
from ..config import ConfigError, load_config
from .building import (
    NetworkError,
    check_name,
    find_function,
    hub,
    kind_of,
    set_classes,
    similar,
    without_weights,
)
from .networks import NETWORKS
from .networks import network as network_of_table

Pixels = tuple[float, float, float]


class Source(NamedTuple):
    """What the name of a network means.

    Attributes:
        network: For :func:`build_network`: ``'timm:NAME'`` and the like, or
            the config of a classifier of mmpretrain's.
        weights: None for random ones, ``'pretrained'`` for the library's
            own, or a file or URL.
        classes: Names in the order of its logits, where they are known.
        size: Edge of its pictures in pixels; None for any.
        mean: Of its pixels, RGB, in steps of 0 to 255; None for any.
        std: Likewise.
        imports: Modules that its config needs.
    """

    network: Union[str, dict[str, Any]]
    weights: Optional[str] = None
    classes: Optional[tuple[str, ...]] = None
    size: Optional[int] = None
    mean: Optional[Pixels] = None
    std: Optional[Pixels] = None
    imports: tuple[str, ...] = ()


def find_network(spec: str, role: str = 'teacher') -> Source:
    """Find out what the name of a network means.

    Args:
        spec: ``SOURCE[@WEIGHTS]``. SOURCE is a name of mmpretrain's zoo or
            its beginning (see :func:`zoo_name`) or one of our table;
            ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` or
            ``hf:FOLDER``; ``python:MODULE.FUNCTION``, own code that returns
            a network and may take ``num_classes``: FUNCTION, or MODULE, may
            have ``preprocessing = dict(size=, mean=, std=)``, by default
            ImageNet's, and ``classes``; a config ``FILE.py``; a checkpoint
            ``FILE.pth`` with its config inside, as mmengine and we write it,
            or the folder of a run. WEIGHTS is ``none``, ``pretrained``, a
            file or a URL.
        role: Without WEIGHTS, a ``'teacher'`` has those of its SOURCE and a
            ``'student'`` none.

    Raises:
        NetworkError: In one line, if there is no such network or file.
    """
    if role not in ('teacher', 'student'):
        raise ValueError(f"role must be 'teacher' or 'student', got {role!r}")
    name, given = spec, ''
    if '@' in spec and not Path(spec).exists():
        name, _, given = spec.rpartition('@')
    if given not in ('', 'none', 'pretrained') and '://' not in given and (
            not Path(given).is_file()):
        raise NetworkError(f'{spec}: there is no file {given}')
    weights: Optional[str] = given or (
        'pretrained' if role == 'teacher' else 'none')
    weights = None if weights == 'none' else weights
    library, _, path = name.partition(':')
    if path and library in _LIBRARIES:
        try:
            return _LIBRARIES[library](path, weights)
        except ModuleNotFoundError as error:
            raise NetworkError(
                f"{spec}: {error}; the extra 'distil' has timm and "
                'transformers') from error
    if Path(name).suffix == '.py':
        try:
            config = load_config(name)
        except ConfigError as error:
            raise NetworkError(str(error)) from error
        if weights == 'pretrained':
            weights = config.get('load_from')
        return _of_config(config, name, weights)
    if Path(name).is_dir() or Path(name).suffix == '.pth':
        return _of_run(Path(name), weights)
    return _of_zoo(name, weights, demanded=given == 'pretrained')


def classifier(spec: str, num_classes: int, mean: Sequence[float],
               std: Sequence[float]) -> dict[str, Any]:
    """Config of a student: an ``ImageClassifier`` of mmpretrain.

    Its head, metrics and preprocessing are those of the classes and
    pictures, its loss is the plain cross-entropy, and batch augmentations
    such as mixup are gone.

    Args:
        spec: As for :func:`find_network`.
        num_classes: Of the head.
        mean: Of the pixels, RGB, in steps of 0 to 255.
        std: Likewise.

    Raises:
        NetworkError: As :func:`find_network`, and if the network is none of
            mmpretrain's or cannot learn there.
    """
    source = find_network(spec, 'student')
    if not isinstance(source.network, dict):
        raise NetworkError(
            f"{spec}: a student must be a classifier of mmpretrain's, such "
            'as mobilenet-v3-small, or the CONFIG.py of one; '
            f'{", ".join(_LIBRARIES)} are for teachers')
    pixels = source.network.get('data_preprocessor') or {}
    if source.weights and not pixels.get('to_rgb', True):
        raise NetworkError(f'{spec}: these weights are for BGR pictures')
    config = set_classes(source.network, num_classes)
    kind, part = kind_of(config), kind_of(config.get('head', {}))
    if kind != 'ImageClassifier' or part == 'ConformerHead':
        raise NetworkError(f'{spec}: a {kind} with {part} has no one module '
                           'that puts out its logits')
    config['data_preprocessor'] = dict(
        num_classes=num_classes, mean=[*mean], std=[*std], to_rgb=True)
    head = config['head']
    head['loss'] = dict(type='CrossEntropyLoss', loss_weight=1.0)
    if kind_of(head) in ('LeViTClsHead', 'EfficientFormerClsHead'):
        # mmpretrain trains these without their second layer alone.
        head['distillation'] = False
    if source.weights:
        config['init_cfg'] = dict(
            type='Pretrained', checkpoint=source.weights)
    return config


def zoo_name(name: str) -> str:
    """The model of mmpretrain's zoo that a name, or its beginning, means.

    An exact name means itself. Any other must be the beginning of a model's
    up to a ``_``, but may lack sizes of patches, windows and the like
    (``vit-base`` of ``vit-base-p16_...``). Of several, in this order: the
    one for ImageNet-1k; from scratch; with published weights; trained by
    mmpretrain itself; with the fewest words; first in the alphabet. A
    NetworkError names similar ones.
    """
    from mmpretrain.apis.model import ModelHub
    ModelHub._register_mmpretrain_models()
    models = {
        key: model
        for key, model in ModelHub._models_dict.items() if any(
            one.task == 'Image Classification' for one in model.results or ())
    }
    if name.lower() in models:
        return name.lower()
    fits = re.compile(
        re.escape(name.lower()) + r'(-[pws]?\d+|-\d+x\w+?)*_').match
    if not any(map(fits, models)):
        raise NetworkError(
            f"{name} is no network of mmpretrain's or ours, none of "
            f'{", ".join(f"{key}:..." for key in _LIBRARIES)}, no config and '
            'no run' + similar(
                name, [*(key.partition('_')[0] for key in models), *NETWORKS]))
    return min(
        filter(fits, models),
        key=lambda key:
        (not key.endswith('_in1k'), 'in21k' in key or '-pre_' in key,
         not models[key].weights, '3rdparty' in key, len(
             re.split('[-_]', key)), key))


def _of_zoo(name: str, weights: Optional[str], demanded: bool) -> Source:
    from mmpretrain.apis.model import ModelHub
    try:
        model = ModelHub.get(zoo_name(name))
    except NetworkError:
        if name not in NETWORKS:
            raise
        model = None
    if weights == 'pretrained':
        weights = model and model.weights
        if demanded and not weights:
            raise NetworkError(f'{name} has no published weights')
    if model is None:
        config = network_of_table(name, 'in1k')
        del config['data_preprocessor']
        return Source(config, weights)
    # Some start from the weights of others.
    found = _of_config(model.config, name, weights)
    return found._replace(network=without_weights(found.network))


def _of_run(path: Path, weights: Optional[str]) -> Source:
    """The network of a checkpoint with its config, or of a run's folder."""
    file = path
    if path.is_dir():
        last = path / 'last_checkpoint'
        files = [*path.glob('*_*-*.pth')]
        if last.is_file():
            files = [path / Path(last.read_text().strip()).name]
        if len(files) != 1:
            raise NetworkError(
                f'{path} holds {len(files) or "no"} finished runs: expected '
                'last_checkpoint, or one student that was exported')
        file, = files
    try:
        student = student_checkpoint(read_checkpoint(str(file)), str(file))
    except CheckpointError as error:
        raise NetworkError(str(error)) from error
    meta = student['meta']
    if not meta['cfg']:
        raise NetworkError(f'{file} holds no config: write CONFIG.py@{file}')
    try:
        config = Config.fromstring(meta['cfg'], '.py')
    except ImportError as error:
        raise NetworkError(f'{file} needs a module of its own: '
                           f'{" ".join(str(error).split())}') from error
    found = _of_config(config, str(file),
                       str(file) if weights == 'pretrained' else weights)
    classes = meta.get('dataset_meta', {}).get('classes')
    return found._replace(classes=tuple(classes) if classes else found.classes)


def _of_config(config: Config, path: str, weights: Optional[str]) -> Source:
    """A whole config's classifier, and what its test says of pictures."""
    if 'model' not in config:
        raise NetworkError(f'{path} has no model')
    # Which names the classes that new ones import.
    config = Config(config.to_dict())
    network = Config(student_model(config.model)).to_dict()
    network.pop('train_cfg', None)
    pixels = dict(
        network.get('data_preprocessor')
        or config.get('data_preprocessor') or {})
    data = (config.get('test_dataloader') or {}).get('dataset', {})
    cifar = 'CIFAR' in str(data.get('type'))
    size = 32 if cifar else None
    for step in data.get('pipeline', ()):
        edge = step.get('crop_size') or step.get('scale')
        if kind_of(step).endswith(('CenterCrop', 'Resize')) and edge:
            size = max(edge) if isinstance(edge, Sequence) else edge
        if kind_of(step) == 'Normalize':
            pixels.update({key: step.get(key, True) for key in
                           ('mean', 'std', 'to_rgb')})
    # Files come as BGR and stay so by default; CIFAR's pictures come as RGB.
    # A model alone says nothing.
    alone = not pixels and not data
    to_rgb = pixels.get('to_rgb', alone) != cifar
    network['data_preprocessor'] = dict(pixels, to_rgb=to_rgb)
    mean, std = (pixels.get(key) for key in ('mean', 'std'))
    if weights and not alone and not (mean and std):
        # It learnt from pixels as they are.
        mean, std = (0, 0, 0), (1, 1, 1)
    mean, std = (one and _scaled(one[::1 if to_rgb else -1], 1)
                 for one in (mean, std))
    modules = (config.get('custom_imports') or {}).get('imports') or ()
    imports = {*([modules] if isinstance(modules, str) else modules)}
    classes = (data.get('metainfo') or {}).get('classes')
    if not classes and data.get('type'):
        from mmpretrain.registry import DATASETS
        classes = getattr(
            DATASETS.get(data['type']), 'METAINFO', {}).get('classes')
    return Source(network, weights, tuple(classes)
                  if classes and weights else None, size, mean, std,
                  tuple(sorted(imports - {'wsld_plugin'})))


def _of_timm(name: str, weights: Optional[str]) -> Source:
    import timm
    check_name('timm', name)
    seen: Any = timm.get_pretrained_cfg(name)
    size = seen.input_size[-1] if weights or seen.fixed_input_size else None
    return Source(f'timm:{name}', weights, None, size, _scaled(seen.mean),
                  _scaled(seen.std))


def _of_torchvision(name: str, weights: Optional[str]) -> Source:
    from torchvision.models import get_model_weights
    check_name('torchvision', name)
    best = get_model_weights(name).DEFAULT
    seen = best.transforms()
    fixed = name.startswith(('vit_', 'maxvit_', 'inception_'))
    return Source(
        f'torchvision:{name}', weights,
        tuple(best.meta['categories']) if weights == 'pretrained' else None,
        seen.crop_size[0] if weights or fixed else None, _scaled(seen.mean),
        _scaled(seen.std))


def _of_hugging_face(name: str, weights: Optional[str]) -> Source:
    from transformers import AutoConfig, AutoImageProcessor
    with hub(f'hf:{name}', f'the files of {name}', 'hf:FOLDER'):
        config = AutoConfig.from_pretrained(name)
        if weights is None:
            edge = config.to_dict().get('image_size')
            return Source(f'hf:{name}', size=edge[0] if isinstance(
                edge, (list, tuple)) else edge)
        seen = AutoImageProcessor.from_pretrained(name)
    if getattr(seen, 'do_flip_channel_order', False):
        raise NetworkError(f'hf:{name} takes BGR pictures, which is not '
                           'supported here: look for it in timm')
    edges = dict(getattr(seen, 'crop_size', None) or seen.size)
    size = edges.get('height') or edges.get('shortest_edge')
    # What a processor multiplies pixels by before it normalises.
    unit = seen.rescale_factor if seen.do_rescale else 1
    mean, std = (seen.image_mean, seen.image_std) if getattr(
        seen, 'do_normalize', False) else (
        (0, 0, 0), (1, 1, 1))
    names = tuple(config.id2label[one] for one in range(config.num_labels))
    known = weights == 'pretrained' and names[0] != 'LABEL_0'
    return Source(f'hf:{name}', weights, names if known else None, size,
                  _scaled(mean, 1 / unit), _scaled(std, 1 / unit))


def _of_function(path: str, weights: Optional[str]) -> Source:
    function = find_function(path)
    module = sys.modules[path.rpartition('.')[0]]
    seen, classes = (
        getattr(function, name, getattr(module, name, None))
        for name in ('preprocessing', 'classes'))
    pixels = dict(
        dict(size=None, mean=(123.675, 116.28, 103.53),
             std=(58.395, 57.12, 57.375)), **seen or {})
    if len(pixels) > 3:
        raise NetworkError(f'python:{path}: preprocessing may say size, mean '
                           f'and std, got {", ".join(pixels)}')
    return Source(f'python:{path}', weights,
                  tuple(classes) if classes and weights else None,
                  pixels['size'], _scaled(pixels['mean'], 1),
                  _scaled(pixels['std'], 1))


def _scaled(values: Sequence[float], by: float = 255) -> Pixels:
    # 0.224 * 255 is the 57.12 of others.
    red, green, blue = (round(float(value) * by, 6) for value in values)
    return red, green, blue


_LIBRARIES = {
    'timm': _of_timm,
    'torchvision': _of_torchvision,
    'hf': _of_hugging_face,
    'python': _of_function,
}
