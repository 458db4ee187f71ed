"""The versions of torch, Python and the OpenMMLab packages: a check of each.

    pip install 'nox[uv]'
    nox                       # what no row of the results' file stands for
    nox -t 1.13.1             # the cells of one torch, Python or fork
    nox -s 'check(2.15.0-3.13-onedl)'

Finds the Pythons in PATH. Each cell has an environment of its own, 3 to 7 GB,
which goes when the cell is done. A cell that passes adds its row to the
results' file and is not run again; delete the file to begin anew.
"""
import csv
import os
import re
import shutil
import time
from pathlib import Path

import nox

ROOT = Path(__file__).parent
RESULTS = ROOT / 'tools/benchmarks/results/versions.csv'
COLUMNS = ('torch', 'python', 'packages', 'mmcv', 'numpy', 'passed', 'skipped',
           'cpu_seconds', 'commit', 'date')

# Built against numpy 1, which opencv-python 4.12 no longer takes.
OLD = ('numpy<2', 'opencv-python<4.12', 'mmcv-lite==2.1.0')
# torch, its Pythons, what must be asked for beside it. The other pairs have no
# wheels, of torch or, for 1.13.1 on Python 3.11, of torchvision.
TORCH = (
    ('1.13.1', ('3.9', '3.10'), OLD),
    ('2.1.2', ('3.9', '3.10', '3.11'), OLD),
    ('2.4.1', ('3.9', '3.10', '3.11', '3.12'), ()),
    ('2.6.0', ('3.9', '3.10', '3.11', '3.12', '3.13'), ()),
    ('2.9.1', ('3.10', '3.11', '3.12', '3.13'), ()),
    ('2.12.1', ('3.10', '3.11', '3.12', '3.13'), ()),
    ('2.15.0', ('3.11', '3.12', '3.13'), ()),
)
# The forks need Python 3.10.
ONEDL = ('onedl-mmengine==0.10.12', 'onedl-mmpretrain==1.3.6')
CELLS = [
    nox.param(python, torch, packages, id=f'{torch}-{python}-{packages}',
              tags=[torch, python, packages])
    for torch, pythons, _ in TORCH for python in pythons
    for packages in ('openmmlab', 'onedl')
    if (python, packages) != ('3.9', 'onedl')
]
# Of what .ci/run gives to .ci/check, that which meets the other packages. The
# tests of mathematics and of files meet torch and numpy alone and take longer.
TESTS = ('tests/losses/test_training_parity.py', 'tests/compat',
         '--durations=5')

nox.options.default_venv_backend = 'uv'
nox.options.error_on_missing_interpreters = True


@nox.session
@nox.parametrize('python,torch,packages', CELLS)
def check(session: nox.Session, torch: str, packages: str) -> None:
    """Train shortly and test with one combination of versions."""
    cell = {'torch': torch, 'python': session.python, 'packages': packages}
    if any(cell.items() <= row.items() for row in finished()):
        session.skip(f'has its row in {RESULTS.name}')
    pins = next(pins for version, _, pins in TORCH if version == torch)
    env = Path(session.virtualenv.location)
    before = sum(os.times()[2:4])
    try:
        session.install('-e', '.[openmmlab,test]', f'torch=={torch}', *pins)
        if packages == 'onedl':
            session.run('uv', 'pip', 'uninstall', 'mmengine', 'mmpretrain')
            session.install('--no-deps', *ONEDL)
        printed = session.run('.ci/check', str(env / 'bin/python'),
                              f'work_dirs/{env.name}', *TESTS, external=True,
                              silent=True)
        versions = session.run('python', '-c', 'import mmcv, numpy; '
                               'print(mmcv.__version__, numpy.__version__)',
                               silent=True).split()[-2:]
    finally:
        shutil.rmtree(env)
    session.log(printed)
    add({
        **cell,
        **dict(zip(('mmcv', 'numpy'), versions)),
        **{word: count for count, word in
           re.findall(r'(\d+) (passed|skipped)', printed.splitlines()[-1])},
        'cpu_seconds': round(sum(os.times()[2:4]) - before),
        'commit': session.run('git', 'rev-parse', '--short', 'HEAD',
                              external=True, silent=True).strip(),
        'date': time.strftime('%Y-%m-%d'),
    })


def finished() -> list:
    """Give the rows of the cells that passed."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline='') as file:
        return list(csv.DictReader(file))


def add(row: dict) -> None:
    """Put a row at the end of the results' file."""
    new = not RESULTS.exists()
    with RESULTS.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerow(row)
