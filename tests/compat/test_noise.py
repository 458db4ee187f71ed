"""Known warnings of others are silenced, and only they."""
import warnings

import pytest
from mmengine.logging import MMLogger

from wsld_plugin.compat import noise, quiet


@pytest.mark.parametrize('known', [
    *noise._LOGGED, 'Fail to import ``MultiScaleDeformableAttention``'])
def test_the_chatter_is_there_without_us(trained, known):
    assert known in trained['stdout'] + trained['stderr'], (
        'nobody says this any more: is the filter still needed?')


def test_unknown_warnings_are_still_shown(capsys, monkeypatch):
    monkeypatch.setattr(MMLogger, 'filter', MMLogger.filter)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        quiet()
        warnings.warn('something else', stacklevel=1)
        # Silent as a FutureWarning only.
        for kind in (UserWarning, FutureWarning):
            warnings.warn('`broadcast_buffers` is deprecated', kind,
                          stacklevel=1)
    assert [str(one.message) for one in shown] == [
        'something else', '`broadcast_buffers` is deprecated'
    ]
    logger = MMLogger.get_instance('noise')
    for said in ('is missing', 'will be deprecated in future'):
        logger.warning('"FileClient" %s', said)
    out = capsys.readouterr().out
    assert 'is missing' in out
    assert 'will be deprecated' not in out
