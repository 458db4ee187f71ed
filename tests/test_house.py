"""The house rules that can be read off the source."""
import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'wsld_plugin'

# What a room may import besides the standard library and itself. A name
# stands for itself and all below it; rooms are named without the package.
ARROWS = {
    'functional': ('torch', ),
    'losses': ('torch', 'mmengine.registry', '.functional'),
    'models': ('torch', 'numpy', 'mmengine', 'mmcv', 'mmpretrain', 'timm',
               'torchvision', 'transformers', 'huggingface_hub',
               'safetensors', '.checkpoints', '.config'),
    'datasets': ('torch', 'numpy', 'mmengine', 'mmcv', 'mmpretrain',
                 'sklearn', 'cv2', 'PIL', 'rich', '.checkpoints'),
    'caching': ('torch', 'numpy', 'mmengine', 'filelock', 'rich',
                '.functional', '.checkpoints', '.datasets'),
    'hooks': ('torch', 'numpy', 'mmengine', 'mmcv', '.functional', '.losses',
              '.caching', '.checkpoints'),
    'checkpoints': ('torch', 'mmengine', 'mmpretrain', 'modelindex', 'onnx',
                    'onnxruntime', 'rich', 'sklearn', 'filelock', 'tenacity',
                    '.config', '.version', '.functional'),
    'config': ('mmengine', 'yaml'),
    'analysis': ('torch', 'numpy', 'pandas', 'mmengine', 'matplotlib',
                 'scipy', 'jinja2', 'markupsafe', 'rich', 'mmpretrain',
                 '.functional', '.checkpoints'),
    'distillation': ('torch', 'pandas', 'scipy', 'mmengine', 'mmcv', 'cv2',
                     'matplotlib', 'markupsafe', 'rich', 'filelock', 'numpy',
                     '.functional', '.checkpoints', '.datasets', '.models',
                     '.caching', '.analysis', '.compat', '.version'),
    'compat': ('torch', 'numpy', 'mmengine', 'mmcv', 'mmpretrain', 'mmrazor',
               '.checkpoints'),
}
# Written so that this file does not match it.
MACHINE_PATH = re.compile(r'(?<![\w./-])/(?:root|work|tmp|home)/')


def modules(folder=PACKAGE):
    return sorted(folder.rglob('*.py'))


def imports(path):
    """Absolute names of what a module imports, ours with a leading dot."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (re.sub(r'^wsld_plugin\b', '', alias.name)
                        for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = package[:len(package) + 1 - node.level]
            base = '.'.join([*parts, *filter(None, [node.module])])
            yield from ([f'.{base}'] if base else
                        [f'.{alias.name}' for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            yield re.sub(r'^wsld_plugin\b', '', node.module or '')


def may_import(room, name):
    return any(name == allowed or name.startswith(f'{allowed}.')
               for allowed in (*ARROWS[room], f'.{room}'))


def test_every_room_has_its_arrows():
    rooms = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert rooms <= set(ARROWS)


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason='no list of the standard library')
@pytest.mark.parametrize(
    'path', [path for path in modules()
             if path.parent != PACKAGE or path.stem in ARROWS],
    ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    room = path.relative_to(PACKAGE).with_suffix('').parts[0]
    assert {name for name in imports(path)
            if name.split('.')[0] not in sys.stdlib_module_names
            and not may_import(room, name)} == set()


def test_arrows_have_no_cycle():
    TopologicalSorter({
        room: [name[1:] for name in names if name.startswith('.')]
        for room, names in ARROWS.items()}).prepare()


@pytest.mark.parametrize(
    'path', modules() + modules(ROOT / 'tools'),
    ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_no_bad_habits(path):
    bad = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            bad.append((node.lineno, 'assert, which -O removes'))
        elif isinstance(node, ast.ImportFrom):
            bad += [(node.lineno, 'import *') for alias in node.names
                    if alias.name == '*']
        elif isinstance(node, ast.ExceptHandler):
            kind = ast.unparse(node.type) if node.type else ''
            if kind in ('', 'Exception', 'BaseException'):
                bad.append((node.lineno, f'except {kind}'))
    assert bad == []


def test_tools_and_tests_are_not_imported():
    outside = re.compile(r'(tools|configs|tests)(\.|$)')
    assert {(path.name, name)
            for path in modules()
            for name in imports(path) if outside.match(name)} == set()


def test_no_file_names_a_machine():
    files = [
        path for pattern in ('*.py', '*.md', '*.toml', '*.yml', '*.sh', 'run')
        for path in ROOT.rglob(pattern)
        if not any(part in ('work_dirs', 'build', 'dist', 'data')
                   or (part.startswith('.') and part != '.ci')
                   for part in path.relative_to(ROOT).parts)]
    assert len(files) > 20
    assert [f'{path}:{number}' for path in files for number, line in enumerate(
        path.read_text().splitlines(), 1) if MACHINE_PATH.search(line)] == []


def test_every_file_is_read_in_one_sitting():
    files = [path for room in ('wsld_plugin', 'tools', 'tests', 'configs')
             for path in (ROOT / room).rglob('*.py')]
    assert len(files) > 100
    assert [str(path) for path in files
            if len(path.read_text().splitlines()) > 400] == []


def test_no_room_is_for_odds_and_ends():
    names = {path.stem for path in PACKAGE.rglob('*')}
    assert names & {'utils', 'util', 'common', 'misc', 'helpers'} == set()
