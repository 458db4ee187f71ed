"""Known warnings of others are silenced, and only they."""
from __future__ import annotations

import warnings

import pytest
from mmengine.logging import MMLogger

from wsld_plugin.compat import quiet


@pytest.mark.parametrize('known', [
    '"FileClient" will be deprecated in future',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    'Fail to import ``MultiScaleDeformableAttention``',
])
def test_the_chatter_is_there_without_us(trained, known):
    assert known in trained['stdout'] + trained['stderr'], (
        'nobody says this any more: is the filter still needed?')


def test_unknown_warnings_are_still_shown(capsys, monkeypatch):
    monkeypatch.setattr(MMLogger, 'filter', MMLogger.filter)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        quiet()
        quiet()
        warnings.warn('something else', stacklevel=1)
        warnings.warn('pkg_resources is deprecated as an API', stacklevel=1)
        warnings.warn('`broadcast_buffers` is deprecated', stacklevel=1)
        warnings.warn(
            '`broadcast_buffers` is deprecated. Use',
            FutureWarning,
            stacklevel=1)
    assert [str(one.message) for one in shown] == [
        'something else', '`broadcast_buffers` is deprecated'
    ]
    logger = MMLogger.get_instance('noise')
    logger.warning('"FileClient" is missing')
    logger.warning('"FileClient" will be deprecated in future. Please')
    out = capsys.readouterr().out
    assert '"FileClient" is missing' in out
    assert 'will be deprecated' not in out
