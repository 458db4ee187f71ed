"""`import wsld_plugin` is light, repeatable, and idle where all is well."""
import json
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import mmengine.config.config
import torch
from mmengine.utils import digit_version

from wsld_plugin import compat
from wsld_plugin.compat import mmrazor as adapter

REPORT = '''
import json, sys
import wsld_plugin
wsld_plugin.compat.apply()
report = dict(
    heavy=[*{'mmrazor', 'mmpretrain', 'matplotlib'} & set(sys.modules)],
    finders=sum('wsld' in type(one).__module__ for one in sys.meta_path),
    fixes=[fix.name for fix in wsld_plugin.compat.fixes_in_force()])
from mmpretrain.registry import MODELS
assert 'mmpretrain.models' not in sys.modules
report['built'] = MODELS.build(dict(type='WideResNet', depth=16)).__module__
print(json.dumps(report))
'''
BLIP_NEEDS = '''
from transformers.modeling_utils import apply_chunking_to_forward
print('is there')
'''


def test_import_is_light_and_changes_what_is_broken_alone(run_python):
    done = run_python('-W', 'error::UserWarning:wsld_plugin', '-c', REPORT)
    assert done.returncode == 0, done.stderr
    torch_is = digit_version(torch.__version__)
    needed = {
        # Not in the onedl fork.
        'mmengine-package-lookup': find_spec('pkg_resources') is None
        and 'pkg_resources' in Path(
            find_spec('mmengine').submodule_search_locations[0], 'utils',
            'package_utils.py').read_text(),
        'mmengine-fork-names': bool(find_spec('mmseg')) and not any(
            distributions(name='mmsegmentation')),
        'mmengine-layout': hasattr(mmengine.config.config, 'FormatCode'),
        'mmengine-checkpoints': True,
        'mmpretrain-multimodal': all(
            map(find_spec, ('pycocotools', 'transformers')))
        and not run_python('-c', BLIP_NEEDS).stdout,
        'mmrazor-quantization': torch_is >= digit_version('2.0.0'),
        'mmcv-ceiling': any(
            find_spec(name) and digit_version(adapter._mmcv_version()) >
            digit_version(newest)
            for name, newest in adapter._NEWEST_MMCV.items()),
        'mmrazor-teachers': True,
        'own-names': True,
    }
    assert json.loads(done.stdout) == dict(
        heavy=[], finders=1, fixes=[name for name in needed if needed[name]],
        built='wsld_plugin.models.backbones.wide_resnet')


def test_every_fix_says_what_and_why():
    fixes = compat.fix._KNOWN
    assert len({fix.name for fix in fixes}) == len(fixes)
    for fix in fixes:
        assert all(fix)
        package, _, path = fix.upstream.partition('/')
        folder, = find_spec(package).submodule_search_locations
        assert Path(folder, path).stat().st_size > 0
