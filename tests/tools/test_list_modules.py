"""The list of modules, as a user asks for it."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / 'configs' / 'wsld_r34_r18_digits.py'


def test_names_for_recorders(call_tool: Callable[..., None],
                             refusal: Callable[..., str],
                             capsys: pytest.CaptureFixture) -> None:
    call_tool('modules.py', CONFIG, 'head.*')
    lines = [line for line in capsys.readouterr().out.splitlines()
             if 'Linear' in line]
    assert len(lines) == 2 and all('10' in line for line in lines)
    assert 'no module is called zzz' in refusal('modules.py', CONFIG, 'zzz')
