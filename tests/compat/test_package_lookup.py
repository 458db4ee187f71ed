"""`package::config` resolves with and without pkg_resources."""
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import package_utils

from wsld_plugin.compat import mmengine as adapter

INHERIT = "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'"
FIRST_WITHOUT = f'''
from mmengine.config import Config
def read():
    return Config.fromstring("{INHERIT}", '.py').model.backbone.depth
try:
    read()
except ModuleNotFoundError as error:
    print('broken:', error)
import wsld_plugin
print('with us', read())
'''
OPENMMLAB = package_utils.is_installed is adapter.is_installed or (
    'pkg_resources' in package_utils.is_installed.__code__.co_names)


def test_inherits_without_pkg_resources(run_python, site_without):
    assert Config.fromstring(INHERIT, '.py').model.backbone.depth == 18
    name = 'mmpretrain::resnet/resnet34_8xb32_in1k.py'
    assert get_config(name).model.backbone.depth == 34
    site = site_without('pkg_resources', 'setuptools', 'wsld', '__editable')
    done = run_python('-c', FIRST_WITHOUT, site=site)
    assert 'with us 18' in done.stdout, done.stderr
    if OPENMMLAB:
        assert "broken: No module named 'pkg_resources'" in done.stdout, (
            'mmengine reads it by itself: is the fix still needed?')


def test_finds_modules_distributions_and_nothing_else():
    folder, = find_spec('mmpretrain').submodule_search_locations
    assert adapter.get_installed_path('mmpretrain') == folder
    # A distribution that has another name than its module.
    assert adapter.get_installed_path('mmcv-lite').endswith('mmcv')
    assert not adapter.is_installed('no_such_package')
    with pytest.raises(ModuleNotFoundError, match="'no_such_package'"):
        adapter.get_installed_path('no_such_package')
