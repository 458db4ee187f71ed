"""A training that several tests look at."""
from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from processes import DISTILLATION


@pytest.fixture(scope='session')
def trained(call_tool: Callable[..., None],
            tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of two epochs with running averages of the weights."""
    work_dir = tmp_path_factory.mktemp('trained') / 'wsld, seed 0'
    call_tool('train.py', DISTILLATION, '--work-dir', work_dir,
              '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=2',
              'default_hooks.ema.type=EMAHook',
              'default_hooks.ema.momentum=0.1')
    return work_dir


@pytest.fixture(scope='session')
def exported(call_tool: Callable[..., None], trained: Path) -> Path:
    """Its student's file, by the tool's last line."""
    with redirect_stdout(io.StringIO()) as said:
        call_tool('export_student.py', trained / 'epoch_2.pth',
                  f'{trained}/out/')
    *_, kind, path = said.getvalue().splitlines()
    assert kind == "The student's averaged (EMA) weights:"
    return Path(path)
