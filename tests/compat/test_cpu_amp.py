"""bfloat16 training where the only device is the CPU."""
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import CheckpointLoader, Runner
from tiny_training import config

from wsld_plugin.compat import prepare_amp

pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='there is another device than the CPU')


def prepared(**fields):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', **fields)))
    prepare_amp(cfg)
    return cfg


def build(model, cfg):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return OPTIM_WRAPPERS.build(dict(cfg.optim_wrapper, optimizer=optimizer))


def test_plain_mmengine_refuses_the_cpu(monkeypatch):
    cfg = prepared(dtype='bfloat16')
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available',
                        torch.cuda.is_available)
    with pytest.raises(AssertionError, match='only available training'):
        build(torch.nn.Linear(1, 1), cfg)


@pytest.mark.parametrize('loss_scale',
                         ['dynamic', 512., dict(init_scale=512.)])
def test_computes_in_bfloat16_and_steps(loss_scale):
    model = torch.nn.Linear(4, 4)
    before = model.weight.detach().clone()
    wrapper = build(model, prepared(dtype='bfloat16', loss_scale=loss_scale))
    assert type(wrapper) is AmpOptimWrapper
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    # The sum of two rows of ones has gradient 2, whatever the loss scale.
    assert torch.equal(model.weight, before - 1)


def test_trains_saves_and_resumes(trained, capsys):
    state = CheckpointLoader.load_checkpoint(str(trained['checkpoint']))
    assert 'loss_scaler' in state['optimizer']
    assert 'rank 0 of 1: iter 4' in trained['stdout']
    cfg = config(str(trained['work_dir']), epochs=2, amp='bfloat16')
    cfg.update(experiment_name='resumed', resume=True)
    prepare_amp(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 8
    said = capsys.readouterr().out
    assert 'resumed epoch: 1, iter: 4' in said
    assert 'Epoch(train) [2]' in said and 'Epoch(train) [1]' not in said


def test_refuses_float16_of_its_wrapper_alone():
    for dtype in ('float16', torch.float16):
        with pytest.raises(ValueError, match='the only device is the CPU'):
            prepared(dtype=dtype)
    prepare_amp(Config(dict(optim_wrapper=dict(dtype='float16'))))
    prepare_amp(Config(dict(model=dict())))
