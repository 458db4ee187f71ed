"""What is changed in others' packages: where, why, and whether it is."""
from __future__ import annotations

from typing import NamedTuple


class Fix(NamedTuple):
    """A change to somebody else's package."""

    name: str
    package: str
    # Where the change is needed, and what fails without it.
    versions: str
    reason: str
    # File in which the cause stands, relative to site-packages.
    upstream: str


_KNOWN = (
    Fix('mmengine-package-lookup', 'mmengine 0.10', 'setuptools>=82',
        'configs that inherit from "package::config" cannot be read: mmengine '
        'looks packages up by pkg_resources',
        'mmengine/utils/package_utils.py'),
    Fix('mmengine-fork-names', 'mmengine 0.10', 'onedl-mmsegmentation',
        'configs of "mmseg::config" are asked of the distribution '
        'mmsegmentation, which mmengine then installs over the fork\'s files',
        'mmengine/config/utils.py'),
    Fix('mmengine-layout', 'mmengine 0.10', 'all',
        'a training has the same config laid out by yapf six times, half a '
        'second each; it is done once',
        'mmengine/config/config.py'),
    Fix('mmengine-checkpoints', 'mmengine 0.10', 'all',
        'torch.load refuses the log history in mmengine checkpoints, or '
        'before torch 2.6 executes whatever a file holds; what mmengine '
        'writes is allowed, anything else is refused by name',
        'mmengine/runner/checkpoint.py'),
    Fix('mmpretrain-multimodal', 'mmpretrain 1.2', 'transformers>=5',
        'with pycocotools, which mmdet brings, mmpretrain.models imports its '
        'multimodal models, on names that transformers no longer has',
        'mmpretrain/utils/dependency.py'),
    Fix('mmrazor-quantization', 'mmrazor 1.0.0', 'torch>=2.0',
        'its quantization modules use names that torch.ao no longer has, and '
        'mmrazor.models imports them; they are left empty, as on torch 1.12',
        'mmrazor/structures/quantization/backend_config/'
        'common_operator_config_utils.py'),
    Fix('mmrazor-teachers', 'mmrazor 1.0.0', 'all',
        "a teacher's file that does not fit, or has torchvision's names, is "
        'passed over and the teacher stays random; it is loaded by any name '
        'and strictly, and a teacher without weights is warned of',
        'mmrazor/models/algorithms/distill/configurable/'
        'single_teacher_distill.py'),
    Fix('mmcv-missing', 'mmrazor 1.0.0, mmpretrain', 'mmcv not installed',
        'their import error does not say that mmcv-lite will do',
        'mmrazor/__init__.py'),
    Fix('mmcv-ceiling', 'mmrazor, mmseg, mmdet, mmcls',
        'mmcv>2.1.0, for mmcls >2.0.1',
        'they refuse every newer mmcv at import, and mmrazor, which imports '
        'the others, fails with them', 'mmrazor/__init__.py'),
    Fix('own-names', 'mmengine', 'all',
        'it takes "package::config" of the packages that it lists only, and '
        'of configs in folders only', 'mmengine/config/utils.py'),
    Fix('cpu-amp', 'mmengine 0.10', 'no GPU, AmpOptimWrapper',
        'it refuses to be built without a GPU, though bfloat16 works on the '
        'CPU', 'mmengine/optim/optimizer/amp_optimizer_wrapper.py'),
    Fix('cpu-processes', 'mmengine 0.10', 'no GPU, several processes',
        'it calls torch.cuda.set_device in every process and wraps the model '
        'for a GPU', 'mmengine/dist/utils.py'),
)
_in_force: dict[str, Fix] = {}


def put_on_record(name: str) -> None:
    """Note that a fix is in force."""
    _in_force[name] = next(fix for fix in _KNOWN if fix.name == name)


def fixes_in_force() -> tuple[Fix, ...]:
    """Changes to others' packages that were found necessary so far.

    Returns:
        One record per fix, in the order in which they came into force.
    """
    return tuple(_in_force.values())
