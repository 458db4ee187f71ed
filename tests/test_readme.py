"""The README says what is so: paths, links, commands, configs, numbers."""
from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
COMMANDS = [
    line for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    for line in block.splitlines()
]
# Where each command is run; those of ImageNet run on digits there.
RUN_BY = {
    'python3 tools/quickstart.py': 'tests/tools/test_quickstart.py',
    'python3 tools/run_tests.py': '.ci/run',
    "pip install -e '.[openmmlab]'": 'tools/_environment.py',
    "pip install -e '.[openmmlab,distil,deploy]'": 'tools/_environment.py',
    'tools/dist_train.sh': 'tests/tools',
    'tools/dist_test.sh': 'tests/tools',
    'python tools/export_student.py': 'tests/tools',
    'python tools/download_checkpoints.py': 'tests/checkpoints',
    'python tools/train.py': 'tests/tools',
    'python tools/distil.py': 'tests/tools',
    'python tools/modules.py': 'tests/tools',
    'python tools/cache_teacher.py': 'tests/tools',
    'python tools/analyze.py': 'tests/tools',
    'snakemake --snakefile tools/experiments/Snakefile': 'tests/tools',
}


def test_links_and_paths_exist() -> None:
    links = re.findall(r'\]\(([^)]+)\)', README)
    missing = [
        link for link in links
        if '://' not in link and not (ROOT / link.partition('#')[0]).exists()
    ]
    assert len(links) > 10 and missing == []
    assert all(link.startswith('https://') for link in links if '://' in link)
    paths = re.findall(
        r'\b(?:tools|configs|tests|wsld_plugin)/[\w./-]*\w', README)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_are_run_somewhere(command: str) -> None:
    known, = [start for start in RUN_BY if command.startswith(start)]
    place = ROOT / RUN_BY[known]
    files = sorted(place.rglob('*.py')) if place.is_dir() else [place]
    # The script's own name, or for pip the argument.
    name = shlex.split(known)[-1].split('/')[-1].strip('.')
    if known.startswith('pip'):
        assert '--editable' in place.read_text()
        name, = re.findall(r'\[([\w,]+)\]', known)
    assert any(name in file.read_text() for file in files)


def test_option_flags_exist() -> None:
    source = ''.join(path.read_text() for path in (ROOT / 'tools').iterdir()
                     if path.suffix == '.py')
    flags = set(re.findall(r'`(--[\w-]+)`', README))
    assert flags
    assert {flag for flag in flags if f"'{flag}'" not in source} == set()


def test_the_change_to_a_pipeline_builds_the_loss() -> None:
    diff, = re.findall(r'```diff\n(.*?)```', README, re.DOTALL)
    imports, removed, put = diff.splitlines()
    pipeline = (ROOT / 'docs' / 'existing_pipeline.py').read_text()
    assert (imports[0], removed[0], put[0]) == ('+', '-', '+')
    assert pipeline.count(removed[1:]) == 1
    # Without the bracket that closes distill_losses.
    loss = put[1:].strip().rstrip(',')[:-1]
    cfg = Config.fromstring(f'{imports[1:]}\nlosses = dict({loss})', '.py')
    built = MODELS.build(cfg.losses.loss_wsld)
    assert (built.tau, built.loss_weight) == (2, 2.5)


def test_every_config_is_listed() -> None:
    # The page that the README sends to for the pairs on CIFAR-100.
    page = (ROOT / 'docs' / 'reproduction.md').read_text()
    configs = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert {
        name for name in configs
        if f'(configs/{name}.py)' not in README
        and f'(../configs/{name}.py)' not in page
    } == set()


@pytest.mark.parametrize(
    'page', sorted((ROOT / 'docs').glob('*.md')), ids=lambda path: path.name)
def test_pages_link_what_is_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'\]\((?!https://)([^)#]+)[^)]*\)', text)
    assert [
        link for link in links if not (page.parent / link).exists()
    ] == []
    assert f'(docs/{page.name})' in README


def test_every_room_is_on_the_map() -> None:
    rooms = {
        path.parent.name
        for path in (ROOT / 'wsld_plugin').glob('*/__init__.py')
    }
    assert {room for room in rooms
            if f'(wsld_plugin/{room})' not in README} == set()


def test_versions_are_those_that_were_run() -> None:
    path = ROOT / 'tools' / 'benchmarks' / 'results' / 'versions.csv'
    with path.open(newline='') as file:
        run = {(row['torch'], row['python'], row['packages'])
               for row in csv.DictReader(file)}
    rows = re.findall(
        r'^\| (\d+\.\d+\.\d+) \| ([\d., ]*?) ?\| ([\d., ]*?) ?\|$', README,
        re.MULTILINE)
    assert {(torch, python, packages)
            for torch, stock, onedl in rows
            for packages, pythons in (('openmmlab', stock), ('onedl', onedl))
            for python in filter(None, pythons.split(', '))} == run


def test_metafiles_name_what_is_there() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for path in index['Import']:
        meta = yaml.safe_load((ROOT / path).read_text())
        collections = {item['Name']: item for item in meta['Collections']}
        for collection in collections.values():
            assert (ROOT / collection['README']).exists()
        for model in meta['Models']:
            assert model['In Collection'] in collections
            assert (ROOT / model['Config']).exists()
            assert Path(model['Config']).stem == model['Name']
            assert model['Weights'].startswith('https://')
            accuracy = model['Results'][0]['Metrics']['Top 1 Accuracy']
            assert f'| {accuracy} |' in README
