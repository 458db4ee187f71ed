"""Networks of mmsegmentation's configs, as a distiller takes them."""
from __future__ import annotations

from typing import Any

from mmengine.config import Config


def segmentor(config: str,
              *,
              pretrained: bool = True,
              **changes: Any) -> dict[str, Any]:
    """Config of the network that a config of mmseg trains.

    Its cross-entropies average over the pixels that have a label, as
    ``WSLDLoss`` does, and not over all, as mmseg's do by default: or the
    more of a picture is padding, the less they count beside it.

    Args:
        config: ``'mmseg::'`` and a config of that package, or the path of
            one's own.
        pretrained: Whether its backbone starts from a file; False for a
            teacher, whose ``teacher_ckpt`` has all of it.
        changes: Parts of the model that are other than in the config, as
            ``decode_head=dict(num_classes=11)``; merged as configs are.

    Returns:
        A new dict for ``model.architecture`` or ``model.teacher``.

    Raises:
        KeyError: If the config has no model.
    """
    if '::' in config:
        cfg = Config.fromstring(f'_base_ = {config!r}', '.py')
    else:
        cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(model=changes))
    model: dict[str, Any] = cfg.to_dict()['model']
    if not pretrained:
        model['pretrained'] = None
        model['backbone'].pop('init_cfg', None)
    for head in ('decode_head', 'auxiliary_head'):
        for part in _listed(model.get(head)):
            for loss in _listed(part.get('loss_decode')):
                if loss['type'].endswith('CrossEntropyLoss'):
                    loss.setdefault('avg_non_ignore', True)
    return model


def _listed(part: Any) -> list[dict[str, Any]]:
    return part if isinstance(part, list) else [part] if part else []
