"""mmrazor 1.0.0 imports, builds and trains a step on the torch at hand."""
import pytest
import torch
from mmengine.utils import digit_version

import wsld_plugin  # noqa: F401

TORCH_2 = digit_version(torch.__version__) >= digit_version('2.0.0')

FIRST_WITHOUT = '''
import sys, torch
for attempt in range(2):
    try:
        import mmrazor.models
    except (ImportError, AssertionError) as error:
        print('broken:', error)
print('top level imported:', 'mmrazor' in sys.modules)
import wsld_plugin
from mmrazor.utils import register_all_modules
register_all_modules()
import mmcv, mmengine, mmrazor.models
from mmrazor.models.task_modules.tracer import fx_tracer
from mmrazor.registry import MODELS
truth = mmengine.digit_version(torch.__version__)
assert mmrazor.digit_version is mmengine.digit_version
assert fx_tracer.digit_version(torch.__version__) == truth
for name, module in list(sys.modules.items()):
    if name.startswith('mmrazor') and hasattr(module, 'digit_version'):
        assert module.digit_version(torch.__version__) == truth, name
for name in ('SingleTeacherDistill', 'ConfigurableDistiller', 'WSLD'):
    assert MODELS.get(name) is not None, name
print('usable')
'''


@pytest.mark.skipif(not TORCH_2, reason='mmrazor imports on torch 1')
def test_plain_import_fails_and_can_be_repeated_with_us(run_python):
    done = run_python('-c', FIRST_WITHOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('broken:') == 2, (
        'mmrazor imports by itself here: is the fix still needed?')
    assert 'usable' in done.stdout


def test_missing_mmcv_is_named_with_its_remedy(run_python, site_without):
    site = site_without('mmcv')
    said = [
        run_python('-c', f'import {names}', site=site).stderr.splitlines()[-1]
        for names in ('mmrazor', 'wsld_plugin, mmrazor')
    ]
    assert 'mmcv-lite' not in said[0], (
        'mmrazor says it by itself: is the fix still needed?')
    assert said[1].startswith('ModuleNotFoundError: mmrazor needs mmcv: '
                              'install mmcv-lite')
    assert "No module named 'mmcv'" in said[1]
