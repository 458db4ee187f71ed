"""Several processes that do one thing: in step, and one of them writes."""
from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine import dist
from mmengine.config import Config
from mmengine.utils.dl_utils import set_multi_processing

from .. import compat

_Result = TypeVar('_Result')
# The others wait while the first reads a large folder of pictures.
_PATIENCE = datetime.timedelta(hours=6)


def join_processes(launcher: str) -> None:
    """Join the other processes of a launcher, as mmengine's Runner does.

    A ValueError as :func:`wsld_plugin.compat.prepare_distributed`.
    """
    group = dict(backend='nccl', timeout=_PATIENCE.total_seconds())
    compat.prepare_distributed(
        Config(dict(launcher=launcher, env_cfg=dict(dist_cfg=group))))
    if launcher != 'none' and not dist.is_distributed():
        set_multi_processing(distributed=True)
        dist.init_dist(launcher, **group)


def on_first(function: Callable[..., _Result], *args: Any) -> _Result:
    """Call a function in the first process, and let all have its result.

    An error there ends the others, too, by SystemExit, instead of letting
    them wait. If there are others, the result must be picklable.
    """
    found: list[Any] = [None, True]
    try:
        if dist.is_main_process():
            found = [function(*args), False]
    finally:
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(found)
    if found[1]:
        raise SystemExit(2)
    return found[0]  # type: ignore[no-any-return]
