"""Several processes where there are no GPUs, or fewer than asked for."""
from __future__ import annotations

import os
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.device import get_device, is_cuda_available

from .fix import put_on_record

# Where launchers say which of a node's processes this is, and of how many.
_LAUNCHERS = {
    'pytorch': ('LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    'slurm': ('SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE'),
}


def prepare_distributed(cfg: Config) -> None:
    """Ready a config for ``Runner`` in a process started by a launcher.

    With GPUs, mmengine's own way is left alone. Where no device but the CPU
    is available the process group is initialised here, with gloo in place
    of the backend in ``env_cfg.dist_cfg``, and ``model_wrapper_cfg`` is
    told not to name a GPU. Without a launcher nothing is done.

    Args:
        cfg: Config whose ``launcher`` is set; changed in place.

    Raises:
        ValueError: If the launcher is unknown, if this process was not
            started by it, or if there are GPUs but fewer than processes on
            this node.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    if launcher not in _LAUNCHERS:
        raise ValueError(f'launcher is {launcher!r}, expected one of '
                         f'{["none", *_LAUNCHERS]}')
    rank_name, size_name = _LAUNCHERS[launcher]
    local_rank = os.environ.get(rank_name)
    if local_rank is None:
        raise ValueError(
            f'launcher is {launcher!r}, but the environment variable '
            f'{rank_name} is not set: this process was not started by that '
            'launcher')
    # mmengine reads it under every launcher, and sets it under slurm only.
    os.environ['LOCAL_RANK'] = local_rank
    if is_cuda_available():
        _expect_a_gpu_each(os.environ.get(size_name, ''), int(local_rank))
    elif get_device() == 'cpu':
        _initialise_gloo(cfg, launcher)
        _wrap_model_without_gpu(cfg)
        put_on_record('cpu-processes')


def _expect_a_gpu_each(size: str, local_rank: int) -> None:
    asked = int(size) if size.isdigit() else local_rank + 1
    visible = torch.cuda.device_count()
    if asked > visible:
        raise ValueError(
            f'{asked} processes were started on this node, which need a GPU '
            f'each, and see {visible}: start fewer, or hide the GPUs '
            '(CUDA_VISIBLE_DEVICES=-1) to train on the CPU')


def _initialise_gloo(cfg: Config, launcher: str) -> None:
    from mmengine.dist import init_dist, is_distributed
    from mmengine.utils.dl_utils import set_multi_processing
    if is_distributed():
        return
    env_cfg = cfg.get('env_cfg', {})
    # As Runner does it: before the group, or init_dist chooses the start
    # method of the data loaders' workers.
    set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
    dist_cfg = {**env_cfg.get('dist_cfg', {}), 'backend': 'gloo'}
    # Which needs a driver.
    with patch.object(torch.cuda, 'set_device'):
        init_dist(launcher, **dist_cfg)


def _wrap_model_without_gpu(cfg: Config) -> None:
    from mmengine.registry import MODEL_WRAPPERS
    from torch.nn.parallel import DistributedDataParallel
    if cfg.get('model_wrapper_cfg') is None:
        # What Runner builds by default, but for the device.
        unused = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = dict(
            broadcast_buffers=False, find_unused_parameters=unused)
    wrapper = cfg.model_wrapper_cfg
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    kind = wrapper.type
    if isinstance(kind, str):
        kind = MODEL_WRAPPERS.get(kind)
    if kind is not None and issubclass(kind, DistributedDataParallel):
        wrapper.device_ids = None
