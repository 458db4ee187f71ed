"""With the hooks that we ship, two processes train as they do without."""
from __future__ import annotations

from typing import Any

import pytest
from hook_tester import CASES, FUSED, Steps, off_by, two_processes

# A new hook is one more line; one that changes how a step is computed has a
# row of its own.
HOOKS: dict[str, list[dict[str, Any]]] = {
    'fast step': [dict(type='FastStepHook')],
    'others': [
        dict(type='DistillCheckpointHook', interval=1),
        dict(type='EpochSeedHook'),
        dict(type='FrozenTeacherHook'),
        dict(type='ValidateTeacherHook'),
        dict(type='WSLDMonitorHook'),
    ],
}
# Those in which a wrong hook shows.
SHOWS = ['plain', 'unused', 'static graph', 'EMA']
Trained = list[dict[tuple[str, str], Steps]]


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return two_processes(tmp_path_factory.mktemp('two'), [
        *((name, case, hooks) for case in CASES
          if FUSED or case != 'fused SGD'
          for name, hooks in {'': [], **HOOKS}.items()),
        *(('wrong', case, [dict(type='LateLayout')]) for case in SHOWS)])


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('hook', HOOKS)
def test_gradients_and_weights_are_stocks(hook: str, case: str,
                                          trained: Trained) -> None:
    if ('', case) not in trained[0]:
        pytest.skip('this torch has no fused SGD')
    first, second = (rank[hook, case] for rank in trained)
    stock = trained[0]['', case]
    assert len(stock) == (5 if case == 'accumulation' else 9)
    assert off_by(first, stock) < 1e-5
    gradients = slice(None, -1)
    assert off_by(second[gradients], first[gradients]) < 1e-6
    parameters = [{key: one[-1][key] for key in one[0]}
                  for one in (first, second)]
    assert off_by([parameters[1]], [parameters[0]]) < 1e-6


@pytest.mark.parametrize('case', SHOWS)
def test_a_late_layout_shows(case: str, trained: Trained) -> None:
    for rank in trained:
        assert off_by(rank['wrong', case], rank['', case]) > 0.1
