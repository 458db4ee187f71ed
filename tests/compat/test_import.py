"""`import wsld_plugin` is light, repeatable, and idle where all is well."""
from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from mmengine.utils import digit_version

import wsld_plugin
from wsld_plugin import compat
from wsld_plugin.compat import mmrazor as adapter

ALL_IS_WELL = (
    digit_version(torch.__version__) < digit_version('2.0.0')
    and find_spec('pkg_resources') is not None
    and digit_version(adapter._mmcv_version()) <= digit_version('2.1.0'))

REPORT = '''
import sys
import mmengine.config, mmengine.logging, mmengine.registry
import mmengine.utils.package_utils as lookup
before = vars(lookup).copy()
import wsld_plugin
wsld_plugin.compat.apply()
finders = [f for f in sys.meta_path if 'wsld' in type(f).__module__]
print('heavy', sorted({'mmrazor', 'mmpretrain', 'matplotlib'}
                      & set(sys.modules)))
print('finders', len(finders))
print('lookup changed', vars(lookup) != before)
print('fixes', [fix.name for fix in wsld_plugin.compat.fixes_in_force()])
'''


@pytest.fixture(scope='module')
def report(run_python) -> dict[str, str]:
    done = run_python('-W', 'error::UserWarning:wsld_plugin', '-c', REPORT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {line.rsplit(' ', 1)[0]: line.rsplit(' ', 1)[1]
            for line in lines[1:3]} | {
                'heavy': lines[0], 'fixes': lines[3]}


def test_loads_none_of_the_heavy_packages(report):
    assert report['heavy'] == 'heavy []'


def test_applying_twice_installs_one_finder(report):
    assert int(report['finders']) <= 1


@pytest.mark.skipif(not ALL_IS_WELL, reason='this environment needs fixes')
def test_nothing_is_patched_where_nothing_is_broken(report):
    # Those that every version needs.
    assert report['fixes'] == "fixes ['mmrazor-teachers', 'own-names']"
    assert report['finders'] == '1'
    assert report['lookup changed'] == 'False'


@pytest.mark.skipif(ALL_IS_WELL, reason='nothing to fix here')
def test_every_fix_says_what_and_why():
    fixes = compat.fixes_in_force()
    assert fixes
    assert len({fix.name for fix in fixes}) == len(fixes)
    for fix in fixes:
        assert all(vars(fix).values())
        package = fix.upstream.split('/')[0]
        folder = find_spec(package).submodule_search_locations[0]
        upstream = folder + fix.upstream[len(package):]
        with open(upstream, encoding='utf-8') as file:
            assert file.read(1)


def test_version_is_stated():
    assert digit_version(wsld_plugin.__version__) > digit_version('0.0.0')
