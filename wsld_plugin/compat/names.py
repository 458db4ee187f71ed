"""Our configs and students under the names that other packages look up."""
from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config

from .fix import put_on_record
from .import_hook import after_import

_PREFIX = 'wsld_plugin::'
# In front of a path or URL of a distiller's checkpoint: only the student.
_STUDENT_SCHEME = 'wsld-student:'
# Where setup.py puts configs and tools, the same place as OpenMMLab's.
_MIM = Path(__file__).parents[1] / '.mim'


def apply() -> None:
    """Let mmengine find ``wsld_plugin::`` configs, mmpretrain students."""
    find = Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(_PREFIX):
            # The scope would be our name, which no registry has: a config
            # says by itself whose parts it is made of.
            return str(_config_file(cfg_path)), None
        return find(cfg_path, filename)

    Config._get_cfg_path = staticmethod(get_cfg_path)  # type: ignore
    after_import('mmengine.hub', _open_hub)
    after_import('mmpretrain.apis.model', _list_students)
    put_on_record('own-names')


def _config_file(name: str) -> Path:
    path = _MIM / 'configs' / name[len(_PREFIX):]
    if path.is_file():
        return path
    found = sorted(file.name for file in path.parent.glob('*.py'))
    raise FileNotFoundError(
        f'{name} is not among the configs of wsld_plugin: {path.parent} holds '
        f'{", ".join(found) or "nothing"}')


def _open_hub(package: ModuleType) -> None:
    """Replace mmengine.hub's functions by those that know our configs."""
    others_config, others_model = package.get_config, package.get_model

    def get_config(cfg_path: str, pretrained: bool = False) -> Config:
        if not cfg_path.startswith(_PREFIX):
            return others_config(cfg_path, pretrained)
        path = _config_file(cfg_path)
        cfg = Config.fromfile(path)
        if pretrained:
            from mmengine.config.utils import _get_cfg_metainfo
            name = str(path.relative_to(_MIM / 'configs'))
            cfg.model_path = _get_cfg_metainfo(str(_MIM.parent),
                                               name)['Weights']
        return cfg

    def get_model(cfg_path: str,
                  pretrained: bool = False,
                  **kwargs: Any) -> Any:
        if not cfg_path.startswith(_PREFIX):
            return others_model(cfg_path, pretrained, **kwargs)
        return _build_student(get_config(cfg_path, pretrained), kwargs)

    for module in (package, sys.modules['mmengine.hub.hub']):
        vars(module).update(get_config=get_config, get_model=get_model)


def _build_student(cfg: Config, kwargs: dict[str, Any]) -> Any:
    from mmengine.registry import MODELS, DefaultScope

    from .. import checkpoints
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(
            checkpoints.student_model(cfg.model), default_args=kwargs)
    path = cfg.get('model_path')
    if path:
        weights = checkpoints.read_checkpoint(path)['state_dict']
        checkpoints.load_weights(
            model, checkpoints.student_weights(weights, path), path)
        # Or Runner would initialise it anew.
        model._is_init = True
    return model


def _list_students(module: ModuleType) -> None:
    """Put the students of our metafile among mmpretrain's models."""
    from mmengine.runner import CheckpointLoader

    from ..checkpoints import student_model
    index = _MIM / 'model-index.yml'
    if not index.is_file():  # the sources, not installed
        return
    hub = module.ModelHub
    others = set(hub._models_dict)
    hub.register_model_index(index, config_prefix=_MIM)
    for name in set(hub._models_dict) - others:
        metainfo = hub._models_dict[name]
        cfg = Config.fromfile(metainfo.config, import_custom_modules=False)
        cfg.model = student_model(cfg.model)
        metainfo.config = cfg
        if metainfo.weights is not None:
            metainfo.weights = _STUDENT_SCHEME + metainfo.weights
    CheckpointLoader.register_scheme(
        _STUDENT_SCHEME, load_from_distiller, force=True)


def load_from_distiller(filename: str, map_location: Any) -> dict[str, Any]:
    """Read a checkpoint after ``wsld-student:`` as one of its student."""
    from ..checkpoints import read_checkpoint, student_weights
    path = filename[len(_STUDENT_SCHEME):]
    checkpoint = read_checkpoint(path)
    weights = student_weights(checkpoint['state_dict'], path)
    return dict(checkpoint, state_dict=weights)
