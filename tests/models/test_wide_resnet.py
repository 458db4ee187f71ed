"""WideResNets."""
from __future__ import annotations

import pytest

from wsld_plugin.models.backbones import WideResNet


@pytest.mark.parametrize('settings,message', [
    (dict(depth=18), r'depth must be 6n \+ 4 \(10, 16, 22, ...\), got 18'),
    (dict(depth=4), 'got 4'),
    (dict(depth=16, widen_factor=0), 'widen_factor must be 1 or more, got 0'),
])
def test_what_is_no_wide_resnet_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(**settings)
