"""Fresh Python processes, since fixes act at import."""
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRAINING = HERE / 'tiny_training.py'
RunPython = Callable[..., 'subprocess.CompletedProcess[str]']


@pytest.fixture(scope='session')
def run_python():
    """Runs Python with arguments; the repository is importable."""

    def run(*args, site=None, **env):
        path = [str(HERE.parents[1])]
        if site is not None:
            # Without the environment's own site-packages.
            args = ('-S', *args)
            path.insert(0, str(site))
        env = dict(
            os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='-1',
            PYTHONPATH=os.pathsep.join(path), **env)
        return subprocess.run([sys.executable, *args], capture_output=True,
                              text=True, timeout=300, env=env)

    return run


@pytest.fixture
def site_without(tmp_path):
    """Makes a copy, by links, of site-packages that lacks some packages."""

    def make(*missing):
        site = tmp_path / 'site'
        site.mkdir()
        for entry in Path(sysconfig.get_path('purelib')).iterdir():
            if not entry.name.startswith(missing):
                (site / entry.name).symlink_to(entry)
        return site

    return make


@pytest.fixture(scope='session')
def trained(run_python, tmp_path_factory):
    """A one-epoch run on the CPU in bfloat16, with its console and files."""
    work_dir = tmp_path_factory.mktemp('trained')
    done = run_python(str(TRAINING), str(work_dir), '--amp', 'bfloat16')
    assert done.returncode == 0, done.stderr
    return dict(work_dir=work_dir, checkpoint=work_dir / 'epoch_1.pth',
                stdout=done.stdout, stderr=done.stderr)
