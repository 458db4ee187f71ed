"""Others find what is installed, and existing pipelines run with it."""
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from sklearn.datasets import load_sample_images

from wsld_plugin.losses import WSLDLoss

ROOT = Path(__file__).parents[1]
PUBLISHED = 'wsld_r34_r18_in1k-evalbn'
BUILD = 'from setuptools.build_meta import *; build_{}({!r})'
# In a process of its own, with the installation in front of any other.
LOOK = f'''
import json, site, sys
from importlib.metadata import distribution
from pathlib import Path
folder = sys.argv[1]
# An editable installation of the environment's own is out of the way.
ours = '__editable___wsld_plugin'
sys.meta_path = [one for one in sys.meta_path
                 if not getattr(one, '__module__', '').startswith(ours)]
for name in [name for name in sys.modules if name.startswith(ours)]:
    del sys.modules[name]
sys.path.insert(0, folder)
site.addsitedir(folder)

import torch
import wsld_plugin
found = dict(package=str(Path(wsld_plugin.__file__).parent))

# As mim and mmengine do it with pkg_resources.
dist = distribution('wsld_plugin')
found['mim'] = str(Path(str(dist.locate_file('')),
                        dist.read_text('top_level.txt').split('\\n')[0]))

from mmengine.config import Config
from mmengine.hub import get_config, get_model
name = 'wsld_plugin::wsld_r34_r18_in1k.py'
cfg = Config.fromstring(f"_base_ = '{{name}}'\\noption = 1", '.py')
found['base'] = [cfg.model.type, cfg.option, cfg.custom_imports.imports[0]]
found['url'] = get_config('wsld_plugin::{PUBLISHED}.py', True).model_path
found['others'] = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py'
                             ).model.backbone.depth
from mmrazor.registry import MODELS
built = MODELS.build(dict(cfg_path=name, pretrained=False))
found['cfg_path'] = [type(built).__name__, built.backbone.depth]
try:
    get_config('wsld_plugin::nothing.py')
except FileNotFoundError as error:
    found['missing'] = str(error)

import mmpretrain
found['listed'] = mmpretrain.list_models('wsld')
weights = {{f'architecture.{{key}}': value
           for key, value in built.state_dict().items()}}
weights['teacher.head.fc.bias'] = torch.zeros(3)
torch.save(dict(state_dict=weights), Path(folder, Path(found['url']).name))
student = mmpretrain.get_model('{PUBLISHED}', pretrained=True,
                               url_mapping=('https://.*/', folder + '/'))
found['same'] = all(torch.equal(value, student.state_dict()[key])
                    for key, value in built.state_dict().items())
print(json.dumps(found))
'''


def run_alone(*args, **options):
    env = dict(os.environ, OMP_NUM_THREADS='1')
    env.pop('PYTHONPATH', None)
    return subprocess.run([sys.executable, *args], env=env,
                          capture_output=True, text=True, **options)


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def installed(request, tmp_path_factory):
    """How and into which folder a copy of the sources was installed."""
    pytest.importorskip('setuptools.command.editable_wheel')
    root = tmp_path_factory.mktemp(request.param)
    sources = root / 'sources'
    sources.mkdir()
    for name in ('configs', 'tools', 'wsld_plugin'):
        shutil.copytree(ROOT / name, sources / name,
                        ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    for path in ROOT.glob('*.*'):
        if path.is_file():
            shutil.copy(path, sources)
    done = run_alone('-c', BUILD.format(request.param, str(root)), cwd=sources)
    assert done.returncode == 0, done.stderr
    wheel, = root.glob('*.whl')
    site = root / 'site'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return request.param, site


def test_installation_is_found_by_others(installed):
    kind, site = installed
    done = run_alone('-c', LOOK, str(site), cwd=site.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    package = site / 'wsld_plugin'
    if kind == 'editable':
        package = site.parent / 'sources' / 'wsld_plugin'
        assert (package / '.mim' / 'tools').is_symlink()
    assert found['package'] == found['mim'] == str(package)
    assert (package / '.mim' / 'tools' / 'train.py').is_file()
    shipped = (package / '.mim' / 'configs').resolve().rglob('*.*')
    assert {path.name for path in (ROOT / 'configs').rglob('*.*')} == {
        path.name for path in shipped if path.suffix != '.pyc'}
    assert found['base'] == ['mmrazor.SingleTeacherDistill', 1, 'wsld_plugin']
    assert found['url'].endswith('acc-71.54_20211222-57925cbf.pth')
    assert found['others'] == 18
    assert found['cfg_path'] == ['ImageClassifier', 18]
    assert 'wsld_r34_r18_digits.py' in found['missing']
    assert found['listed'] == [PUBLISHED]
    assert found['same']


def test_mmengine_does_not_find_our_configs_by_itself():
    for name, error in (('a.py', 'ValueError'), ('a/b.py', 'AssertionError')):
        done = run_alone(
            '-c', 'from mmengine.config.utils import '
            '_get_package_and_cfg_path as find; '
            f'find("wsld_plugin::{name}")')
        assert f'\n{error}' in done.stderr, (
            'mmengine knows us: is compat/names.py still needed?')


def test_existing_pipeline_trains_with_our_loss(tmp_path):
    for split in ('train', 'val'):
        for label, photo in enumerate(load_sample_images().images):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for left in (0, 90):
                piece = Image.fromarray(photo[:, left:left + 300])
                piece.save(folder / f'{left}.jpg')
    # The user's file with the README's changes.
    text = (ROOT / 'docs' / 'existing_pipeline.py').read_text()
    diff, = re.findall(r'```diff\n(.*?)```', (ROOT / 'README.md').read_text(),
                       re.DOTALL)
    imports, removed, put = diff.splitlines()
    assert f'{imports}\n' in (ROOT / 'docs' / 'migration.md').read_text()
    assert (imports[0], removed[0], put[0]) == ('+', '-', '+')
    assert text.count(removed[1:]) == 1
    cfg = Config.fromstring(
        f'{imports[1:]}\n{text.replace(removed[1:], put[1:])}', '.py')
    # There is no network where tests run.
    cfg.model.teacher.pretrained = False
    cfg.train_cfg.max_epochs = 1
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].update(batch_size=2, num_workers=0)
        cfg[f'{split}_dataloader'].dataset.data_root = str(tmp_path / split)
    cfg.update(work_dir=str(tmp_path / 'run'), log_level='WARNING',
               test_dataloader=None, test_evaluator=None, test_cfg=None)
    runner = Runner.from_cfg(cfg)
    loss = runner.model.distiller.distill_losses.loss_wsld
    assert (type(loss), loss.tau, loss.loss_weight) == (WSLDLoss, 2, 2.5)
    before = runner.model.architecture.head.fc.weight.detach().clone()
    runner.train()
    assert runner.iter == 2
    losses = runner.message_hub.get_scalar('train/distill.loss_wsld').data[0]
    assert torch.isfinite(torch.tensor(losses)).all()
    assert not torch.equal(before, runner.model.architecture.head.fc.weight)
