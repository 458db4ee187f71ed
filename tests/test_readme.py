"""The README says what is so: paths, links, commands, configs, numbers."""
import csv
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
COMMANDS = [
    line for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    for line in block.splitlines()]
# What runs them; those of ImageNet on digits.
RUNNERS = [ROOT / '.ci' / 'run', *(ROOT / 'tests' / 'tools').glob('*.py'),
           *(ROOT / 'tests' / 'checkpoints').glob('*.py')]


def test_links_and_paths_exist():
    links = re.findall(r'\]\(([^)]+)\)', README)
    missing = [
        link for link in links
        if '://' not in link and not (ROOT / link.partition('#')[0]).exists()]
    assert len(links) > 10 and missing == []
    assert all(link.startswith('https://') for link in links if '://' in link)
    paths = re.findall(
        r'\b(?:tools|configs|tests|wsld_plugin)/[\w./-]*\w', README)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_are_run_somewhere(command):
    if extras := re.fullmatch(r"pip install -e '\.\[([\w,]+)\]'", command):
        text = (ROOT / 'tools' / '_environment.py').read_text()
        assert '--editable' in text and extras[1] in text
        return
    script, = re.findall(
        r'^(?:python3? |snakemake --snakefile )?tools/\S*?([\w.]+)(?= |$)',
        command)
    assert any(script in file.read_text() for file in RUNNERS)


def test_option_flags_exist():
    source = ''.join(path.read_text() for path in (ROOT / 'tools').iterdir()
                     if path.suffix == '.py')
    flags = set(re.findall(r'`(--[\w-]+)`', README))
    assert flags
    assert {flag for flag in flags if f"'{flag}'" not in source} == set()


def test_every_config_is_listed():
    # The page that the README sends to for the pairs on CIFAR-100.
    page = (ROOT / 'docs' / 'reproduction.md').read_text()
    assert {path for path in (ROOT / 'configs').glob('*.py')
            if f'(configs/{path.name})' not in README
            and f'(../configs/{path.name})' not in page} == set()


@pytest.mark.parametrize(
    'page', sorted((ROOT / 'docs').glob('*.md')), ids=lambda path: path.name)
def test_pages_link_what_is_there(page):
    text = page.read_text()
    links = re.findall(r'\]\((?!https://)([^)#]+)[^)]*\)', text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert f'(docs/{page.name})' in README


def test_every_room_is_on_the_map():
    assert {path for path in (ROOT / 'wsld_plugin').glob('*/__init__.py')
            if f'(wsld_plugin/{path.parent.name})' not in README} == set()


def test_versions_are_those_that_were_run():
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


def test_metafiles_name_what_is_there():
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
