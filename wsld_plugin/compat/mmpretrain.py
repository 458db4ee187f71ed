"""mmpretrain 1.2 beside what mmdet brings, and a transformers it knows not."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .fix import put_on_record
from .import_hook import after_import

# A name of transformers.modeling_utils that mmpretrain's BLIP is built on.
_NEEDED = 'apply_chunking_to_forward'


def apply() -> None:
    """Leave mmpretrain's multimodal models out where they cannot import."""
    spec = find_spec('transformers')
    # The two are what mmpretrain asks for before it imports them.
    if spec is None or spec.origin is None or find_spec('pycocotools') is None:
        return
    code = Path(spec.origin).with_name('modeling_utils.py')
    if _NEEDED not in code.read_text(encoding='utf-8'):
        after_import('mmpretrain.utils.dependency',
                     lambda module: vars(module).update(WITH_MULTIMODAL=False))
        put_on_record('mmpretrain-multimodal')
