"""Plans of experiments: which configs to train, with what, how often."""
from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mmengine
import torch
import yaml
from command_line import add_config_options
from environment import ROOT
from mmengine.config import Config
from trainings import Training

from wsld_plugin import __version__

_NAME = re.compile(r'[A-Za-z0-9][\w.+-]*')
_SCALARS = (str, bool, int, float, type(None))
# The runner sets these itself.
_OURS = ('work_dir', 'resume', 'launcher', 'randomness.seed')


class PlanError(ValueError):
    """A plan that cannot be read; one line says where and why."""


class Command(NamedTuple):
    """A command line and the variables that go before it."""

    arguments: list[str]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        """To be pasted into a shell."""
        return ' '.join([
            *(f'{key}={shlex.quote(value)}'
              for key, value in self.environment.items()),
            shlex.join(self.arguments)
        ])


@dataclass(frozen=True, eq=False)
class Run(Training):
    """One seed of one run of a plan.

    Attributes:
        plan: Name of the plan.
        name: Of the run, with the values of its switches.
        needs: The run that trains this one's teacher.
        tests: Whether the test split is evaluated at the end.
    """

    plan: str = ''
    name: str = ''
    needs: Run | None = None
    tests: bool = False

    @property
    def title(self) -> str:
        """To tell it from the others of its plan."""
        return f'{self.name}, seed {self.seed}'

    @property
    def test_file(self) -> Path:
        """Metrics of the test split."""
        return self.work_dir / 'test.json'

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished and self.tested

    @property
    def tested(self) -> bool:
        """Whether the test split was evaluated, if it is to be."""
        return not self.tests or self.test_file.exists()

    @property
    def changed(self) -> str | None:
        """How what was trained in the folder differs from the plan.

        None where nothing does, or nothing was trained yet.
        """
        mark = self._mark
        if not (mark.get('finished') or any(self.work_dir.glob('*.pth'))):
            return None
        if 'settings' not in mark:
            return 'by something else than a plan'
        before, now = _flat(mark['settings']), _flat(self._settings)
        if before != now:
            key = min(key for key in {*before, *now}
                      if before.get(key, ...) != now.get(key, ...))
            return (f'with {key.removeprefix("config.")} = '
                    f'{before.get(key, "nothing")}, the plan says '
                    f'{now.get(key, "nothing")}')
        kept, there = mark.get('teacher_sha256'), self._teacher_sha256
        if None not in (kept, there) and kept != there:
            return (f'with another file {self.cfg.model.teacher_ckpt} than '
                    'is there now')
        return None

    @property
    def trained(self) -> bool:
        """Whether it is finished, be its checkpoint there or not."""
        return self._mark.get('finished', False) and self.changed is None

    @property
    def seconds(self) -> float:
        """How long it trained, over all attempts; of a finished run."""
        return self._mark.get('seconds', float('nan'))

    def test_metrics(self) -> dict[str, float]:
        """Metrics of the test split; empty before they are measured."""
        if not self.test_file.exists():
            return {}
        return json.loads(self.test_file.read_text())

    def finish(self) -> None:
        """As a training's; an earlier test is of no use any more."""
        self.test_file.unlink(missing_ok=True)
        super().finish()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """All that the result depends on, but for other people's versions."""
        settings = {
            'config': self.cfg.to_dict(),
            'teacher': self.needs._settings if self.needs else None
        }
        # As they will be read again: tuples become lists.
        return json.loads(json.dumps(settings, default=str))

    @cached_property
    def _digest(self) -> str:
        text = json.dumps(self._settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _teacher_sha256(self) -> str | None:
        """Digest of a teacher's file that no run of the plan trains."""
        path = self.cfg.get('model', {}).get('teacher_ckpt')
        if self.needs is not None or not path or not Path(path).is_file():
            return None
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def _record(self, finished: bool) -> dict[str, Any]:
        record = {
            'plan': self.plan,
            'run': self.name,
            'seed': self.seed,
            'options': dict(self.options),
            'command': Command(self.command, {}).line,
            'versions': versions(),
            'teacher_sha256': self._teacher_sha256,
            'settings': self._settings,
        }
        if finished:
            record['seconds'] = sum(_durations(self.work_dir))
        return record


class Published(NamedTuple):
    """A figure that somebody else reported."""

    figure: float
    source: str


@dataclass(frozen=True)
class Plan:
    """What a plan's file says.

    Attributes:
        name: Of the plan.
        runs: Seeds of each run; teachers stand before those who need them.
        compare: Runs that the others are compared with.
        published: Figures to compare with, by run.
    """

    name: str
    runs: dict[str, list[Run]]
    compare: list[str]
    published: dict[str, Published]

    @property
    def all_runs(self) -> list[Run]:
        """Teachers first, then seed by seed."""
        runs = [run for seeds in self.runs.values() for run in seeds]
        return sorted(runs, key=lambda run: (_depth(run), run.seed))

    @property
    def left(self) -> list[Run]:
        """What is still to be trained or tested, in the same order.

        A checkpoint that somebody removed is missed only where a run that is
        left needs it.
        """
        left = {run for run in self.all_runs
                if not (run.trained and run.tested)}
        for run in reversed(self.all_runs):
            if (run in left and not run.finished and run.needs is not None
                    and not run.needs.finished):
                left.add(run.needs)
        return [run for run in self.all_runs if run in left]

    @property
    def teachers(self) -> set[str]:
        """Runs that others need."""
        return {run.needs.name for run in self.all_runs if run.needs}


def read_plan(path: Path, work_dirs: Path = Path('work_dirs')) -> Plan:
    """Read a plan.

    Args:
        path: YAML file; configs in it are relative to its folder.
        work_dirs: Where the plan's folder is or will be.

    Raises:
        PlanError: If something in it is not as expected.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f'cannot read the plan {path}: {error}') from error
    return _Reader(path, content, work_dirs).plan()


class _Reader:
    """Checks a plan while it is read."""

    def __init__(self, path: Path, content: Any, work_dirs: Path) -> None:
        self.path = path
        self.top = self.keys(
            content,
            '',
            needed=('name', 'seeds', 'runs'),
            others=('options', 'test', 'compare'))
        self.name = self.named(self.top['name'], 'name')
        self.folder = work_dirs / self.name
        self.tests = self.top.get('test', False)
        if not isinstance(self.tests, bool):
            self.fail('test', 'true or false', self.tests)
        self.published: dict[str, Published] = {}

    def fail(self, key: str, expected: str, got: Any) -> NoReturn:
        where = f'{self.path}: {key}' if key else str(self.path)
        raise PlanError(f'{where}: expected {expected}, got {got!r}')

    def plan(self) -> Plan:
        specs = {}
        for name, spec in self.mapping(self.top['runs'], 'runs').items():
            where = f'runs.{self.named(name, "runs")}'
            spec = self.keys(
                spec,
                where,
                needed=('config', ),
                others=('seeds', 'options', 'needs', 'grid', 'published'))
            for suffix, options in self.variants(
                    spec.get('grid', {}), f'{where}.grid'):
                if name + suffix in specs:
                    self.fail(f'{where}.grid', 'values with different names',
                              suffix)
                specs[name + suffix] = (where, spec, options)
        runs: dict[str, list[Run]] = {}
        while waiting := [name for name in specs if name not in runs]:
            before = len(runs)
            for name in waiting:
                where, spec, options = specs[name]
                needs = spec.get('needs')
                if needs is None:
                    teachers = None
                elif not isinstance(needs, str) or needs not in specs:
                    self.fail(f'{where}.needs',
                              f'one of {", ".join(specs)}', needs)
                elif needs in runs:
                    teachers = runs[needs]
                else:
                    continue
                runs[name] = self.seeds_of(name, where, spec, options,
                                           teachers)
            if len(runs) == before:
                self.fail('runs', 'no run that needs itself in the end',
                          ', '.join(waiting))
        compare = self.top.get('compare', [])
        if not isinstance(compare, list):
            self.fail('compare', 'a list of runs', compare)
        for name in compare:
            if not isinstance(name, str) or name not in runs:
                self.fail('compare', f'some of {", ".join(runs)}', name)
        ordered = {name: runs[name] for name in specs}
        return Plan(self.name, ordered, compare, self.published)

    def seeds_of(self, name: str, where: str, spec: Mapping[str, Any],
                 switches: Mapping[str, Any],
                 needs: list[Run] | None) -> list[Run]:
        """The runs of one name, one for each seed."""
        options = {
            key: self.option(key, value, place)
            for place, chosen in (
                ('options', self.top.get('options', {})),
                (f'{where}.options', spec.get('options', {})),
                (f'{where}.grid', switches))
            for key, value in self.mapping(chosen, place).items()
        }
        if not isinstance(spec['config'], str):
            self.fail(f'{where}.config', 'a path', spec['config'])
        config = self.path.parent / spec['config']
        if needs is not None and len(needs) != 1:
            self.fail(f'{where}.needs', 'a run with one seed',
                      f'{needs[0].name} with {len(needs)}')
        seeds = spec.get('seeds', self.top['seeds'])
        if (not isinstance(seeds, list) or not seeds
                or not all(type(seed) is int and seed >= 0 for seed in seeds)
                or len(set(seeds)) < len(seeds)):
            self.fail(f'{where}.seeds' if 'seeds' in spec else 'seeds',
                      'a list of different numbers from 0', seeds)
        runs = [
            Run(_seen_from_here(config),
                self.folder / name / f'seed-{seed}',
                seed,
                options,
                teacher=needs[0].checkpoint if needs else None,
                plan=self.name,
                name=name,
                needs=needs[0] if needs else None,
                tests=self.tests) for seed in seeds
        ]
        self.check_config(runs[0], where)
        if 'published' in spec:
            published = self.keys(
                spec['published'],
                f'{where}.published',
                needed=('figure', 'source'))
            if type(published['figure']) not in (int, float):
                self.fail(f'{where}.published.figure', 'a number',
                          published['figure'])
            self.published[name] = Published(published['figure'],
                                             str(published['source']))
        return runs

    def check_config(self, run: Run, where: str) -> None:
        """See to it that the config says what a run is built on."""
        try:
            base = Config.fromfile(run.config)
        except (OSError, SyntaxError) as error:
            raise PlanError(f'{self.path}: {where}.config: cannot read '
                            f'{run.config}: {error}') from error
        for key in run.options:
            if key.split('.')[0] not in base:
                self.fail(where, f'options that {run.config} has', key)
        try:
            cfg = run.cfg
        except (KeyError, TypeError, IndexError, ValueError,
                AttributeError, AssertionError) as error:
            raise PlanError(
                f'{self.path}: {where}: the options do not fit '
                f'{run.config}: {type(error).__name__}: {error}') from error
        for key, what in (('model', None), ('train_cfg', 'max_epochs')):
            if not cfg.get(key) or (what and not cfg[key].get(what)):
                self.fail(f'{where}.config', f'{key}.{what}'.replace(
                    '.None', ''), f'{run.config} without')
        if not (cfg.get('default_hooks') or {}).get('checkpoint'):
            self.fail(f'{where}.config', 'default_hooks.checkpoint',
                      f'{run.config} without')
        if run.tests and not cfg.get('test_dataloader'):
            self.fail('test', 'configs with a test_dataloader',
                      f'{run.config} without')
        if run.needs is not None:
            if 'teacher' not in cfg.model:
                self.fail(f'{where}.needs', 'a config with a model.teacher',
                          f'{run.config} without')
            if 'model.teacher_ckpt' in run.options:
                self.fail(where, 'either needs or model.teacher_ckpt',
                          'both')
            if 'architecture' in run.needs.cfg.model:
                self.fail(f'{where}.needs',
                          'a run without a teacher of its own',
                          run.needs.name)

    def variants(self, grid: Any,
                 where: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """All combinations of the switches: what to call it, its options."""
        switches = []
        for switch, values in self.mapping(grid, where).items():
            place = f'{where}.{self.named(switch, where)}'
            lists = self.mapping(values, place)
            lengths = set()
            for key, choices in lists.items():
                if not isinstance(choices, list) or not choices:
                    self.fail(f'{place}.{key}', 'a list of values', choices)
                lengths.add(len(choices))
            if len(lengths) != 1:
                self.fail(place, 'options with equally many values', values)
            switches.append([
                (f'_{switch}-{self.word(choice[0], place)}',
                 dict(zip(lists, choice))) for choice in zip(*lists.values())
            ])
        for chosen in itertools.product(*switches):
            options: dict[str, Any] = {}
            for _, part in chosen:
                options.update(part)
            yield ''.join(name for name, _ in chosen), options

    def word(self, value: Any, where: str) -> str:
        """A value as part of a run's name."""
        if isinstance(value, list):
            return '-'.join(self.word(item, where) for item in value)
        word = str(value).lower() if value is None or isinstance(
            value, bool) else str(value)
        return self.named(word, where)

    def option(self, key: str, value: Any, where: str) -> Any:
        """An option's value as tools/train.py will read it."""
        where = f'{where}.{key}'
        if key in _OURS:
            self.fail(where, 'an option that the runner does not set', key)
        try:
            read = _command_line().parse_args(
                ['--cfg-options', f'key={value}']).cfg_options['key']
        except AssertionError:  # mmengine's, for brackets that do not close
            read = ...
        # YAML takes 1e-4 for text.
        same = read == value or (isinstance(value, str) and isinstance(
            read, (int, float, type(None))))
        if not same or not _is_plain(value):
            self.fail(where, 'text without commas and blanks, a number, '
                      'true, false, null or a list of them', value)
        return read

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(
                isinstance(key, str) for key in value):
            self.fail(where, 'a mapping with names as keys', value)
        return value

    def keys(self,
             value: Any,
             where: str,
             needed: Sequence[str],
             others: Sequence[str] = ()) -> dict[str, Any]:
        """A mapping that has the keys it needs and none but known ones."""
        for key in self.mapping(value, where):
            if key not in (*needed, *others):
                self.fail(where, f'one of {", ".join((*needed, *others))}',
                          key)
        for key in needed:
            if key not in value:
                self.fail(where, f'the key {key}', ', '.join(value))
        return value

    def named(self, value: Any, where: str) -> str:
        """A name that can be a folder's."""
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.fail(where, 'a name of letters, digits, ".", "_", "+", "-"',
                      value)
        return value


def _seen_from_here(path: Path) -> Path:
    """The same path, relative where it is below the current folder."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if here in path.parents else path


@cache
def versions() -> dict[str, str | None]:
    """What trains: packages and the commit of this repository."""
    return {
        'python': sys.version.split()[0],
        'torch': torch.__version__,
        'mmengine': mmengine.__version__,
        'mmpretrain': _installed('mmpretrain', 'onedl-mmpretrain'),
        'mmrazor': _installed('mmrazor'),
        'wsld_plugin': __version__,
        'commit': _commit(),
    }


def _installed(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    """The repository's commit, with a plus if files differ from it."""
    git = ['git', '-C', str(ROOT)]
    try:
        commit, changes = (
            subprocess.run([*git, *args],
                           capture_output=True,
                           text=True,
                           check=True).stdout.strip()
            for args in (('rev-parse', 'HEAD'), ('status', '--porcelain',
                                                 '-uno')))
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+' if changes else '')


@cache
def _command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    return parser


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, _SCALARS)


def _depth(run: Run) -> int:
    return 0 if run.needs is None else 1 + _depth(run.needs)


def _durations(work_dir: Path) -> Iterator[float]:
    """Seconds that each attempt trained, by when its logs were written."""
    for path in work_dir.glob('*/vis_data/scalars.json'):
        # mmengine names the folder after the time of the start.
        name = path.parts[-3]
        began = time.mktime(time.strptime(name, '%Y%m%d_%H%M%S'))
        yield max(0.0, path.stat().st_mtime - began)


def _flat(value: Any, path: str = '') -> dict[str, Any]:
    """Values by dotted path."""
    items = (
        value.items() if isinstance(value, dict) else
        enumerate(value) if isinstance(value, list) else None)
    if items is None:
        return {path: value}
    return {
        key: leaf
        for part, inner in items
        for key, leaf in _flat(inner, f'{path}.{part}'.lstrip('.')).items()
    } or {path: value}

