"""A process that cannot finish its writing loses nothing."""
from __future__ import annotations

import random
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from wsld_plugin.checkpoints import read_checkpoint

TINY_CONFIG = Path(__file__).with_name('tiny_distillation.py')
# Mid-write; a signal that comes too late does not count.
KILLS = 2
EPOCHS = 5
# A student large enough for its writing to be seen, epochs of one step, and
# a teacher whose statistics change.
OPTIONS = {
    'model.architecture.backbone.base_channels': 32,
    'model.architecture.backbone.stem_channels': 32,
    'model.architecture.head.in_channels': 256,
    'model.teacher_norm_eval': False,
    'train_dataloader.dataset.indices': 16,
    'train_dataloader.num_workers': 0,
    'default_hooks.checkpoint.max_keep_ckpts': 1,
}


def save_teacher(path: Path) -> None:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(Config.fromfile(TINY_CONFIG).model.teacher)
    torch.save(teacher.state_dict(), path)


def kill_in_write(run: subprocess.Popen, folder: Path, number: int) -> bool:
    """Kill a training while it writes a file.

    Args:
        run: The training.
        folder: Where it writes.
        number: Which of the written files not to let it finish, from 1.

    Returns:
        Whether the file was left unfinished.
    """
    stale = set(folder.glob('*.part'))
    seen: set[tuple[Path, int]] = set()
    while run.poll() is None and len(seen) < number:
        for part in set(folder.glob('epoch_*.part')) - stale:
            try:
                seen.add((part, part.stat().st_ino))
            except FileNotFoundError:
                continue
        time.sleep(2e-4)
    run.kill()
    run.communicate()
    return set(folder.glob('*.part')) - stale != set()


def epoch_of_last(folder: Path) -> int:
    """Check that every file can be read, and return where to go on."""
    for path in folder.glob('*.pth'):
        checkpoint = read_checkpoint(str(path))
        assert checkpoint['meta']['epoch'] >= 1
    last = folder / 'last_checkpoint'
    if not last.exists():
        return 0
    return read_checkpoint(last.read_text())['meta']['epoch']


def test_no_checkpoint_is_lost(
        tmp_path: Path, call_tool: Callable[..., None],
        start_tool: Callable[..., subprocess.Popen]) -> None:
    save_teacher(tmp_path / 'teacher.pth')
    options = {
        **OPTIONS,
        'model.teacher_ckpt': tmp_path / 'teacher.pth',
        'train_cfg.max_epochs': EPOCHS,
    }

    def command(name: str) -> list[object]:
        return [
            'train.py', TINY_CONFIG, '--work-dir', tmp_path / name, '--resume',
            '--no-validate', '--cfg-options',
            *(f'{key}={value}' for key, value in options.items())
        ]

    numbers = random.Random(0)
    epoch, kills = 0, 0
    for attempt in range(5 * KILLS):
        run = start_tool(*command('cut'))
        # The first checkpoint is let through: there is nothing before it.
        number = numbers.choice([1, 2, 3]) if attempt else 3
        in_write = kill_in_write(run, tmp_path / 'cut', number)
        kills += in_write
        before, epoch = epoch, epoch_of_last(tmp_path / 'cut')
        print(f'kill {kills}, mid-write {in_write}: resumable at {epoch}')
        assert epoch >= max(before, 1)
        if kills == KILLS:
            break
    assert kills == KILLS

    call_tool(*command('cut'))
    assert epoch_of_last(tmp_path / 'cut') == EPOCHS
    assert not list((tmp_path / 'cut').glob('*.part'))
    call_tool(*command('whole'))
    cut, whole = (
        read_checkpoint(f'{tmp_path}/{name}/epoch_{EPOCHS}.pth')['state_dict']
        for name in ('cut', 'whole'))
    assert cut.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(cut[key], value), key


def test_full_disk_is_told_in_one_line(tmp_path: Path,
                                       refusal: Callable[..., str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for the log, not for a checkpoint.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
        message = refusal('train.py', TINY_CONFIG, '--work-dir', tmp_path,
                          '--no-validate')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.endswith(f"'{tmp_path}/epoch_1.pth'")
    assert not list(tmp_path.glob('*.p*t*'))
