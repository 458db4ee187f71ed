"""Where the teachers are in a model under training."""
from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn


def distillers(model: Any) -> dict[str, Any]:
    """Modules with a ``teacher`` and ``teacher_trainable``, as in mmrazor.

    By the dotted path of their teacher in the model, unwrapped if it was
    wrapped; ``'teacher'`` where the model itself is the distiller.
    """
    if is_model_wrapper(model):
        model = model.module
    return {
        f'{name}.teacher' if name else 'teacher': module
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'teacher', None), nn.Module)
        and hasattr(module, 'teacher_trainable')
    }
