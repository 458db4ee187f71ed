"""mmrazor, mmseg, mmdet and mmcls, by stand-ins of their first lines."""
from importlib.util import find_spec

import pytest

# Name, and the release of mmcv from which on each refuses it at import.
REFUSED_FROM = {
    'mmrazor': '2.2.0', 'mmseg': '2.2.0', 'mmdet': '2.2.0', 'mmcls': '2.1.0'}
IMPORT = '''
from importlib import import_module
import {0}, mmcv
for name in {1}:
    try:
        print(name, import_module(name).taken_for, mmcv.__version__)
    except AssertionError:
        print(name, 'is broken')
'''
CONFIG = '''
from mmengine.config.utils import MODULE2PACKAGE
print('asked of', MODULE2PACKAGE['mmseg'])
import wsld_plugin
from mmengine.config import Config
from mmengine.hub import get_config
name = 'mmseg::pspnet/pspnet_r18.py'
print('with us', get_config(name).depth,
      Config.fromstring(f"_base_ = '{name}'", '.py').depth)
'''


@pytest.fixture
def site(site_without):
    """Site-packages with stand-ins, and the newest mmcv."""
    names = [*REFUSED_FROM, 'mmcv', 'onedl_mmseg', 'mmsegmentation']
    site = site_without(*names)
    for name in ('mmcv', *REFUSED_FROM):
        (site / name).mkdir()
    (site / 'mmcv' / 'version.py').write_text("__version__ = '2.2.0'\n")
    (site / 'mmcv' / '__init__.py').write_text(
        'from .version import __version__\n')
    for name, refused in REFUSED_FROM.items():
        (site / name / '__init__.py').write_text(
            'from mmcv import __version__ as taken_for\n'
            f'assert taken_for < {refused!r}\n')
    return site


def test_newer_mmcv_is_accepted_with_us_only(run_python, site):
    names = [*REFUSED_FROM]
    plain = run_python('-c', IMPORT.format('sys', names), site=site)
    assert plain.stdout.splitlines() == [
        f'{name} is broken' for name in names], plain.stderr
    done = run_python('-c', IMPORT.format('wsld_plugin', names), site=site)
    assert done.stdout.splitlines() == [
        f'{name} {"2.0.1" if name == "mmcls" else "2.1.0"} 2.2.0'
        for name in names], done.stderr


@pytest.mark.parametrize('name', ['mmrazor', 'mmdet', 'mmcls'])
def test_the_stand_ins_check_what_the_packages_do(name, run_python):
    if run_python('-c', f'from importlib.util import find_spec; '
                  f'assert find_spec({name!r})').returncode:
        pytest.skip(f'{name} is not installed')
    done = run_python('-c', f'import mmcv; mmcv.__version__ = "2.2.0"\n'
                      f'import {name}')
    assert 'AssertionError: MMCV==2.2.0 is used but incompat' in done.stderr, (
        f'{name} accepts it by itself: is the fix still needed?')


def test_configs_of_a_fork_are_found(run_python, site):
    (site / 'mmseg' / '__init__.py').write_text('')
    folder = site / 'mmseg' / '.mim' / 'configs' / 'pspnet'
    folder.mkdir(parents=True)
    (folder / 'pspnet_r18.py').write_text('depth = 18\n')
    (site / 'mmseg' / '.mim' / 'model-index.yml').write_text('Import: []\n')
    done = run_python('-c', CONFIG, site=site)
    assert done.stdout == 'asked of mmsegmentation\nwith us 18 18\n', (
        done.stdout + done.stderr)


def test_mmpretrain_imports_beside_pycocotools(run_python, site_without):
    if find_spec('transformers') is None:
        pytest.skip('transformers is not installed')
    site = site_without('pycocotools', 'mmdet')
    (site / 'pycocotools').mkdir()
    (site / 'pycocotools' / '__init__.py').touch()
    info = site / 'pycocotools-2.0.11.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: pycocotools\nVersion: 2.0.11\n')
    plain = run_python('-c', 'import mmpretrain.models', site=site)
    assert 'NoneType takes no arguments' in plain.stderr, (
        'mmpretrain imports by itself: is the fix still needed?')
    done = run_python('-c', 'import wsld_plugin, mmpretrain.models', site=site)
    assert done.returncode == 0, done.stderr
