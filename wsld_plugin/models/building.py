"""Classifiers of any library as modules from pictures to logits."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, fx, nn

from ..checkpoints import CheckpointError, load_weights, read_checkpoint
from ..checkpoints.loading import unwrapped
from ..checkpoints.student import student_weights


class NetworkError(ValueError):
    """A network or its weights cannot be had; the message is one line."""


class Network(nn.Module):
    """A classifier: RGB pictures ``(N, 3, H, W)`` to logits ``(N, C)``.

    ``network`` is the library's own module; ``is_init`` says whether all its
    weights were loaded, the last layer's too.
    """

    def __init__(self,
                 network: nn.Module,
                 num_classes: int,
                 is_init: bool,
                 config: Optional[Mapping[str, Any]] = None,
                 loaded: bool = True) -> None:
        super().__init__()
        self.network = network
        self.num_classes, self.is_init = num_classes, is_init
        pixels = (config or {}).get('data_preprocessor') or {}
        self._bgr = not pixels.get('to_rgb', True)
        self._openmmlab, self._loaded = config is not None, loaded
        self._sums = kind_of((config or {}).get('head', {})) == 'ConformerHead'

    def init_weights(self) -> None:
        """Start as mmpretrain does, unless weights were loaded.

        Not even if the last layer is new: all others would be lost.
        """
        if self._openmmlab and not self._loaded:
            self.network.init_weights()  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of pictures in the network's own normalisation."""
        outputs = self.network(inputs.flip(1) if self._bgr else inputs)
        return _logits(outputs, self.num_classes, self._sums)

    def train(self, mode: bool = True) -> Network:
        """Switch modes; mmpretrain trains no head that distils by itself."""
        super().train(mode)
        head: Any = getattr(self.network, 'head', None)
        if self._openmmlab and getattr(head, 'distillation', False):
            # It averages its two layers then, as it is tested.
            head.training = False
        return self


@fx.wrap
def _logits(outputs: Any, num_classes: int, sums: bool) -> Tensor:
    """The logits in what a classifier puts out, whatever holds them."""
    if isinstance(outputs, Mapping):
        outputs = outputs['logits']
    outputs = getattr(outputs, 'logits', outputs)
    if isinstance(outputs, (tuple, list)):
        # mmpretrain's Conformer adds its two; the further ones of others
        # only help to train them.
        outputs = sum(outputs) if sums else outputs[0]
    shape = tuple(getattr(outputs, 'shape', ()))
    if len(shape) != 2 or shape[1] != num_classes:
        raise ValueError('a network must put out logits (N, classes) of '
                         f'{num_classes} classes, got {shape or outputs}')
    return outputs


def build_network(network: Union[str, Mapping[str, Any]],
                  num_classes: int,
                  weights: Optional[str] = None) -> Network:
    """Build a classifier of any library.

    Args:
        network: ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` or folder,
            ``python:MODULE.FUNCTION``, or the config of one of mmpretrain's.
        num_classes: Of the logits. Where the weights have another number the
            last layer is new, and random.
        weights: None for none, but what a config or function loads by
            itself; ``'pretrained'`` for the library's own; or a file or URL
            in the names of the library.

    Returns:
        The network, which takes pictures in its own normalisation.

    Raises:
        NetworkError: In one line, if there is no such network, or if its
            weights cannot be had (says which file goes where) or do not fit.
    """
    name, config = str(network), None
    try:
        if isinstance(network, Mapping):
            name, config = str(network.get('type')), network
            with DefaultScope.overwrite_default_scope('mmpretrain'):
                built = MODELS.build(set_classes(network, num_classes))
            # Or what timm has loaded would be initialised anew.
            known = bool(network.get('pretrained'))
        else:
            library, _, path = network.partition(':')
            if library not in _LIBRARIES or not path:
                raise NetworkError(
                    f'{network}: expected a config or one of ' +
                    ', '.join(f'{key}:...' for key in _LIBRARIES))
            built, known = _LIBRARIES[library](path, num_classes,
                                               weights == 'pretrained')
        if weights not in (None, 'pretrained'):
            known = load_own(built, str(weights), num_classes)
    except (CheckpointError, OSError) as error:
        raise NetworkError(f'{name}: {error}') from error
    return Network(built, num_classes, known, config, weights is not None
                   or known)


def last_layers(network: nn.Module,
                num_classes: Optional[int] = None) -> dict[str, Any]:
    """The layers that put out logits, by their names.

    They are the last linear or 1 x 1 convolutional one, and those directly
    before it with as many outputs, as networks with two heads have.

    Raises:
        NetworkError: If there is none, or it has not ``num_classes``.
    """
    layers: dict[str, Any] = {}
    for name, part in reversed([*network.named_modules()]):
        if isinstance(part, nn.Linear) or getattr(part, 'kernel_size',
                                                  0) == (1, 1):
            width = len(part.weight)  # type: ignore[arg-type]
            if width != (num_classes or width):
                break
            num_classes, layers[name] = width, part
    if not layers:
        raise NetworkError(f'{type(network).__name__}: its last layer is no '
                           f'linear one with {num_classes or "any"} outputs')
    return layers


def set_classes(config: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """An mmpretrain classifier's config for another number of classes.

    Raises:
        NetworkError: If it has not one head.
    """
    changed: dict[str, Any] = deepcopy(dict(config))
    kind = kind_of(config)
    if kind in ('TimmClassifier', 'HuggingFaceClassifier'):
        changed['num_classes' if kind[0] == 'T' else 'num_labels'
                ] = num_classes
        if kind[0] == 'H' and config.get('pretrained'):
            changed['ignore_mismatched_sizes'] = True
        return changed
    head, backbone = changed.get('head'), changed.get('backbone')
    if not isinstance(head, dict) or not isinstance(backbone, dict):
        raise NetworkError(f'{kind}: expected a classifier with a backbone '
                           'and one head')
    # As of linear probes, whose backbone would stay random here.
    for key in ('frozen_stages', 'norm_eval'):
        backbone.pop(key, None)
    # This one passes on what the backbone puts out.
    counting = head
    if kind_of(head) == 'ClsHead':
        counting = backbone
    counting['num_classes'] = num_classes
    topk = head.get('topk', 1)
    head['topk'] = tuple(
        k for k in ([topk] if isinstance(topk, int) else topk)
        if k <= num_classes)
    return changed


def without_weights(config: Any) -> Any:
    """A config without what would load weights."""
    if isinstance(config, Mapping):
        return {
            key: without_weights(value)
            for key, value in config.items()
            if key not in ('weights', 'pretrained') and
            (key != 'init_cfg' or 'Pretrained' not in str(value))
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(without_weights, config))
    return config


def kind_of(config: Mapping[str, Any]) -> str:
    """Name of the class that a config is for, without its module."""
    return str(config.get('type')).rpartition('.')[2]


def load_own(network: nn.Module, path: str, num_classes: int) -> bool:
    """Load a file, or a URL's, in a network's own names.

    Returns:
        Whether last layers were loaded, too, rather than of other classes.

    Raises:
        CheckpointError: If it cannot be read or does not fit.
    """
    if path.endswith('.safetensors'):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f'{path} is damaged: {error}') from error
    else:
        weights = unwrapped(read_checkpoint(path)['state_dict'])
        if hasattr(network, 'backbone'):
            weights = student_weights(weights, path)
    own = network.state_dict()
    new = {
        key: own[key]
        for key, value in weights.items() if key in own
        and own[key].shape[:1] == (num_classes, ) != value.shape[:1]
        and value.shape[1:] == own[key].shape[1:]
    }
    load_weights(network, {**weights, **new}, path)
    return not new


def _timm(name: str, num_classes: int,
          pretrained: bool) -> tuple[nn.Module, bool]:
    import timm
    check_name('timm', name)
    seen: Any = timm.get_pretrained_cfg(name)
    with hub(f'timm:{name}', f'model.safetensors of {seen.hf_hub_id}',
             f'timm:{name}@FILE'):
        built = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes)
    return built, pretrained and seen.num_classes == num_classes


def _torchvision(name: str, num_classes: int,
                 pretrained: bool) -> tuple[nn.Module, bool]:
    from torchvision import models
    check_name('torchvision', name)
    extra = {}
    if name in ('googlenet', 'inception_v3'):
        # What their published weights are for.
        extra = dict(
            transform_input=True,
            aux_logits=True,
            init_weights=not pretrained)
    built: Any = models.get_model(name, num_classes=num_classes, **extra)
    known = pretrained and load_own(
        built,
        models.get_model_weights(name).DEFAULT.url, num_classes)
    if extra:
        # Further outputs, which no loss here would read.
        built.aux_logits = False
        built.aux1 = built.aux2 = built.AuxLogits = None
    return built, known


def _hugging_face(name: str, num_classes: int,
                  pretrained: bool) -> tuple[nn.Module, bool]:
    from transformers import AutoConfig
    from transformers import AutoModelForImageClassification as Auto
    with hub(f'hf:{name}', f'the files of {name}', 'hf:FOLDER'):
        config = AutoConfig.from_pretrained(name)
        config.num_labels = num_classes
        if not pretrained:
            return Auto.from_config(config), False
        built, found = Auto.from_pretrained(
            name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True)
    # Their files may be in half precision.
    return built.float(), not (found['missing_keys']
                               or found['mismatched_keys'])


def _python(path: str, num_classes: int,
            pretrained: bool) -> tuple[nn.Module, bool]:
    function = find_function(path)
    takes = 'num_classes' in signature(function).parameters
    given = dict(num_classes=num_classes) if takes else {}
    try:
        signature(function).bind(**given)
    except TypeError as error:
        raise NetworkError(f'python:{path}: {error}; expected a function of '
                           'num_classes or nothing') from error
    built = function(**given)
    if not isinstance(built, nn.Module):
        raise NetworkError(f'python:{path} must return an nn.Module, got '
                           f'{type(built).__name__}')
    layers = {} if takes else last_layers(built)
    other = {
        name: old
        for name, old in layers.items() if len(old.weight) != num_classes
    }
    for name, old in other.items():
        bias = old.bias is not None
        parent, _, last = name.rpartition('.')
        setattr(
            built.get_submodule(parent), last,
            nn.Linear(old.in_features, num_classes, bias) if isinstance(
                old, nn.Linear) else nn.Conv2d(
                    old.in_channels, num_classes, 1, bias=bias))
    return built, pretrained and not other


def find_function(path: str) -> Callable[..., Any]:
    """Own code, by ``MODULE.FUNCTION``; a NetworkError if there is none."""
    module, _, name = path.rpartition('.')
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(
            f'python:{path}: {error}; expected python:MODULE.FUNCTION, and '
            'PYTHONPATH must name the folder of the module') from error
    if not callable(found):
        raise NetworkError(f'python:{path} is a {type(found).__name__}, not '
                           'a function')
    return found  # type: ignore[no-any-return]


@contextmanager
def hub(spec: str, files: str, instead: str) -> Iterator[None]:
    """Say which files to fetch where Hugging Face's cannot be had.

    Raises:
        NetworkError: Names the files, and what to write with them.
    """
    from huggingface_hub import constants
    try:
        yield
    except (OSError, ValueError) as error:
        said = (str(error).strip() or repr(error)).splitlines()[0]
        said = said.partition('. ')[0]
        if Path(spec.partition(':')[2]).is_dir():
            raise NetworkError(
                f'{spec}: {said}; the folder must hold both the model and '
                'its image processor, by save_pretrained') from error
        raise NetworkError(
            f'{spec} is not in {constants.HF_HUB_CACHE} and cannot be had: '
            f'{said}; fetch {files} from {constants.ENDPOINT} elsewhere and '
            f'write {instead}') from error


def check_name(library: str, name: str) -> None:
    """Refuse a name that timm or torchvision has no classifier of."""
    if library == 'timm':
        import timm
        names, known = timm.list_models(), timm.is_model(name)
    else:
        from torchvision import models
        names = models.list_models(module=models)
        known = name in names
    if not known:
        raise NetworkError(f'{library} has no classifier {name!r}' +
                           similar(name, names))


def similar(name: str, names: Iterable[str]) -> str:
    """The end of a sentence: which names are like one."""
    names = sorted({*names})
    close = [one for one in names if one.startswith(name)]
    close += get_close_matches(name, names, n=6, cutoff=0.5)
    close = [*dict.fromkeys(close)][:6]
    return f'; similar: {", ".join(close)}' if close else ''


_LIBRARIES: dict[str, Callable[[str, int, bool], tuple[nn.Module, bool]]] = {
    'timm': _timm,
    'torchvision': _torchvision,
    'hf': _hugging_face,
    'python': _python,
}
