"""What the names of networks mean: libraries, zoos, configs and runs."""
from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import import_modules_from_strings

from ..checkpoints import (
    CheckpointError,
    download_checkpoint,
    read_checkpoint,
    student_checkpoint,
)
from ..config import ConfigError, load_config
from .building import (
    HUGGING_FACE_FILES,
    NetworkError,
    build_network,
    check_name,
    find_function,
    hub,
    set_classes,
    similar,
)
from .networks import NETWORKS, network

__all__ = [
    'NetworkError', 'Source', 'build_network', 'classifier', 'find_network',
    'logits_source'
]

Pixels = tuple[float, float, float]
_MEAN: Pixels = (123.675, 116.28, 103.53)
_STD: Pixels = (58.395, 57.12, 57.375)
# Heads of mmpretrain whose training has no logits of one kind.
_NO_STUDENTS = ('ConformerHead', )


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
    """

    network: Union[str, dict[str, Any]]
    weights: Optional[str] = None
    classes: Optional[tuple[str, ...]] = None
    size: Optional[int] = None
    mean: Optional[Pixels] = None
    std: Optional[Pixels] = None


def find_network(spec: str, role: str = 'teacher') -> Source:
    """Find out what the name of a network means.

    Args:
        spec: ``SOURCE[@WEIGHTS]``. SOURCE is a name of mmpretrain's zoo, its
            beginning (the plainest of several, see :func:`zoo_name`) or one
            of our table; ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` or
            ``hf:FOLDER``; ``python:MODULE.FUNCTION``, whose function may take
            ``num_classes`` and may have the attributes
            ``preprocessing=dict(size=, mean=, std=)`` and ``classes``, or its
            module may; an mmpretrain config; a checkpoint with its config
            inside, as all of ours have, or the folder of a run with one.
            WEIGHTS is ``none``, ``pretrained``, a file or a URL.
        role: Without WEIGHTS, a ``'teacher'`` has those of its SOURCE and a
            ``'student'`` none.

    Raises:
        NetworkError: In one line, if there is no such network or file.
    """
    if role not in ('teacher', 'student'):
        raise ValueError(f"role must be 'teacher' or 'student', got {role!r}")
    name, _, given = spec.rpartition('@')
    if not name or Path(spec).exists():
        name, given = spec, ''
    weights: Optional[str] = given or (
        'pretrained' if role == 'teacher' else 'none')
    weights = None if weights == 'none' else weights
    if given not in ('', 'none', 'pretrained') and '://' not in given and (
            not Path(given).is_file()):
        raise NetworkError(f'{spec}: there is no file {given}')
    library, colon, path = name.partition(':')
    if colon and library in _LIBRARIES:
        return _LIBRARIES[library](path, weights)
    if Path(name).is_dir() or Path(name).suffix in ('.pth', '.pt'):
        return _of_run(name, weights)
    if Path(name).suffix == '.py':
        return _of_config(name, weights)
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
        raise NetworkError(f'{spec}: a student must be a classifier of '
                           "mmpretrain's, by name or config")
    pixels = source.network.get('data_preprocessor') or {}
    if source.weights and not pixels.get('to_rgb', True):
        raise NetworkError(f'{spec}: these weights are for BGR pictures')
    config = set_classes(source.network, num_classes)
    logits_source(config)
    config.pop('train_cfg', None)
    config['data_preprocessor'] = dict(
        num_classes=num_classes, mean=[*mean], std=[*std], to_rgb=True)
    head = config['head']
    head['loss'] = dict(type='CrossEntropyLoss', loss_weight=1.0)
    head.pop('cal_acc', None)
    if str(head['type']) in ('LeViTClsHead', 'EfficientFormerClsHead'):
        # mmpretrain trains them without their second output alone.
        head['distillation'] = False
    if source.weights:
        try:
            if '://' in source.weights:
                download_checkpoint(source.weights)
        except CheckpointError as error:
            raise NetworkError(f'{spec}: {error}') from error
        config['init_cfg'] = dict(
            type='Pretrained', checkpoint=source.weights)
    return config


def logits_source(config: Mapping[str, Any]) -> str:
    """Module of an ``ImageClassifier`` that puts out its logits.

    Args:
        config: Of the classifier, as :func:`classifier` returns.

    Returns:
        What a recorder's ``source`` names: ``'head.fc'``, or ``'head'``
        where several layers or the backbone make the logits.

    Raises:
        NetworkError: If no module does.
    """
    kind = str(config.get('type')).rpartition('.')[2]
    head = str(config.get('head', {}).get('type')).rpartition('.')[2]
    if kind != 'ImageClassifier' or head in _NO_STUDENTS:
        raise NetworkError(f'{kind} with {head}: its training has no single '
                           'logits to distil')
    return 'head.fc' if head == 'LinearClsHead' else 'head'


def zoo_name(name: str) -> str:
    """The model of mmpretrain's zoo that a name, or its beginning, means.

    An exact name means itself. Otherwise the name must be the first part of
    the model's (``resnet34``), but for sizes of patches and windows
    (``vit-base`` of ``vit-base-p16``), or go on to a further part
    (``resnet34_8xb32``). Of several that fit, the one that was trained on
    ImageNet-1k alone, whose weights are published, by mmpretrain itself, and
    whose name has the fewest words, is meant; of those, the first in the
    alphabet.

    Raises:
        NetworkError: If there is none; names similar ones.
    """
    from mmpretrain.apis.model import ModelHub
    ModelHub._register_mmpretrain_models()
    name = name.lower()
    models = {
        key: model
        for key, model in ModelHub._models_dict.items() if any(
            one.task == 'Image Classification' for one in model.results or [])
    }
    if name in models:
        return name
    fits = re.compile(re.escape(name) + r'(-[pws]?\d+|-\d+x\w+?)*_')
    fitting = [key for key in models if fits.match(key)]
    if not fitting:
        parts = {key.split('_')[0] for key in models} | {*NETWORKS}
        raise NetworkError(
            f'{name} is no network of mmpretrain or of ours' +
            similar(name, parts))
    return min(
        fitting,
        key=lambda key: (
            not key.endswith('_in1k'), 'in21k' in key or '-pre_' in key,
            not models[key].weights, '3rdparty' in key, len(re.split('[-_]', key)), key))


def _of_zoo(name: str, weights: Optional[str], demanded: bool) -> Source:
    try:
        model = zoo_name(name)
    except NetworkError:
        if name not in NETWORKS:
            raise
        if demanded:
            raise NetworkError(f'{name} has no published weights') from None
        config = network(name, 'in1k')
        del config['data_preprocessor']
        return Source(config, None if weights == 'pretrained' else weights)
    from mmpretrain.apis.model import ModelHub
    found = ModelHub.get(model)
    if weights == 'pretrained':
        weights = found.weights
        if demanded and not weights:
            raise NetworkError(f'{model} has no published weights')
    return _of_openmmlab(found.config, weights)


def _of_config(path: str, weights: Optional[str]) -> Source:
    try:
        config = load_config(path)
    except ConfigError as error:
        raise NetworkError(str(error)) from error
    if 'model' not in config:
        raise NetworkError(f'{path} has no model')
    if weights == 'pretrained':
        weights = config.get('load_from')
    return _of_openmmlab(config, weights)


def _of_run(path: str, weights: Optional[str]) -> Source:
    """The network of a checkpoint with its config, or of a run's folder."""
    file = Path(path)
    if file.is_dir():
        last = file / 'last_checkpoint'
        files = sorted(file.glob('*_student.pth')) or sorted(
            file.glob('student*.pth'))
        if last.is_file():
            file = Path(last.read_text().strip())
            file = Path(path, file.name)
            student = file.with_name(f'{file.stem}_student.pth')
            file = student if student.is_file() else file
        elif files:
            file = files[-1]
        else:
            raise NetworkError(f'{path} holds no finished run: expected '
                               'last_checkpoint or student*.pth')
    try:
        student = student_checkpoint(read_checkpoint(str(file)), str(file))
    except CheckpointError as error:
        raise NetworkError(str(error)) from error
    if not student['meta']['cfg']:
        raise NetworkError(f'{file} holds no config: write CONFIG.py@{file}')
    config = Config.fromstring(student['meta']['cfg'], '.py')
    if config.get('custom_imports'):
        import_modules_from_strings(**config.custom_imports)
    found = _of_openmmlab(config,
                          str(file) if weights == 'pretrained' else weights)
    classes = student['meta'].get('dataset_meta', {}).get('classes')
    return found._replace(classes=tuple(classes) if classes else found.classes)


def _of_openmmlab(config: Config, weights: Optional[str]) -> Source:
    """A whole config's classifier, and what its test says of pictures."""
    model = config.model.to_dict()
    pixels = model.get('data_preprocessor') or config.get(
        'data_preprocessor') or {}
    pixels = dict(pixels)
    dataset = (config.get('test_dataloader') or {}).get('dataset', {})
    kind = str(dataset.get('type', ''))
    if kind.rpartition('.')[2].startswith('CIFAR'):
        # Whose pictures are RGB from the start.
        pixels['to_rgb'] = True
    model['data_preprocessor'] = pixels
    order = 1 if pixels.get('to_rgb', True) else -1
    mean, std = (tuple(map(float, pixels[key][::order]))
                 if pixels.get(key) is not None else None
                 for key in ('mean', 'std'))
    size = None
    for step in dataset.get('pipeline', []):
        edge = step.get('crop_size') or step.get('scale')
        if step.get('type') in ('CenterCrop', 'Resize') and edge:
            size = max(edge) if isinstance(edge, Sequence) else edge
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None and weights:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            found = DATASETS.get(kind) if kind else None
        classes = (getattr(found, 'METAINFO', None) or {}).get('classes')
    return Source(model, weights, tuple(classes) if weights and classes else
                  None, size if weights else None, mean, std)


def _of_timm(name: str, weights: Optional[str]) -> Source:
    check_name('timm', name)
    import timm
    config = timm.get_pretrained_cfg(name)
    size = config.input_size[-1]
    return Source(
        f'timm:{name}', weights, None,
        size if weights or config.fixed_input_size else None,
        _scaled(config.mean), _scaled(config.std))


def _of_torchvision(name: str, weights: Optional[str]) -> Source:
    check_name('torchvision', name)
    from torchvision.models import get_model_weights
    best = get_model_weights(name).DEFAULT
    seen = best.transforms()
    fixed = name.startswith(('vit_', 'maxvit_', 'inception_'))
    return Source(
        f'torchvision:{name}', weights,
        tuple(best.meta['categories']) if weights == 'pretrained' else None,
        seen.crop_size[0] if weights or fixed else None, _scaled(seen.mean),
        _scaled(seen.std))


def _of_hugging_face(name: str, weights: Optional[str]) -> Source:
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin
    spec = f'hf:{name}'
    with hub(spec, HUGGING_FACE_FILES.format(name), 'hf:FOLDER'):
        config = AutoConfig.from_pretrained(name)
        seen, _ = ImageProcessingMixin.get_image_processor_dict(name)
    edges = seen.get('crop_size') or seen.get('size') or {}
    size = edges if isinstance(edges, int) else edges.get(
        'height', edges.get('shortest_edge'))
    # Pixels are multiplied by this factor first.
    unit = seen.get('rescale_factor', 1 / 255) if seen.get(
        'do_rescale', True) else 1
    mean, std = (0., 0., 0.), (1., 1., 1.)
    if seen.get('do_normalize', True):
        mean, std = seen['image_mean'], seen['image_std']
    names = [config.id2label[i] for i in range(config.num_labels)]
    known = weights == 'pretrained' and names[0] != 'LABEL_0'
    return Source(spec, weights,
                  tuple(names) if known else None, size,
                  _scaled(mean, 1 / unit), _scaled(std, 1 / unit))


def _of_function(path: str, weights: Optional[str]) -> Source:
    function = find_function(path)
    module = sys.modules[path.rpartition('.')[0]]
    seen, classes = (
        getattr(function, name, getattr(module, name, None))
        for name in ('preprocessing', 'classes'))
    seen = {} if seen is None else dict(seen)
    for name in seen:
        if name not in ('size', 'mean', 'std'):
            raise NetworkError(f'python:{path}: preprocessing may say size, '
                               f'mean and std, got {name}')
    return Source(f'python:{path}', weights,
                  tuple(classes) if classes and weights else None,
                  seen.get('size'), _scaled(seen.get('mean', _MEAN), 1),
                  _scaled(seen.get('std', _STD), 1))


def _scaled(values: Sequence[float], by: float = 255) -> Pixels:
    red, green, blue = (float(value) * by for value in values)
    return red, green, blue


_LIBRARIES = {
    'timm': _of_timm,
    'torchvision': _of_torchvision,
    'hf': _of_hugging_face,
    'python': _of_function,
}
