"""What may stand in a plan (see plans/digits.yml), and what it means."""
from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from mmengine.config import Config
from pydantic import BaseModel, Field, ValidationError

from wsld_plugin.config import ConfigError, load_config

Name = Annotated[str, Field(pattern=r'^[A-Za-z0-9][A-Za-z0-9_.+-]*$')]
Seed = Annotated[int, Field(strict=True, ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Values = Annotated[list[Any], Field(min_length=1)]
Switch = Annotated[dict[str, Values], Field(min_length=1, max_length=1)]
OURS = ('work_dir', 'resume', 'launcher', 'randomness.seed')


def _word(value: Any) -> str:
    text = json.dumps(value, default=str)
    return re.sub(r'[^\w.+-]+', '-', text).strip('-')


class Arm(BaseModel, extra='forbid'):
    """What stands below a name in ``runs``."""

    config: str
    seeds: Seeds | None = None
    options: dict[str, Any] = {}
    needs: str | None = None
    grid: dict[Name, Switch] = {}

    def variants(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """All combinations of the switches: names and options."""
        switches = [[(f'_{switch}-{_word(value)}', key, value)
                     for key, values in options.items() for value in values]
                    for switch, options in self.grid.items()]
        for chosen in itertools.product(*switches):
            yield name + ''.join(word for word, _, _ in chosen), {
                **self.options, **{key: value for _, key, value in chosen}
            }


class Plan(BaseModel, extra='forbid'):
    """What stands in a plan's file."""

    name: Name
    seeds: Seeds
    options: dict[str, Any] = {}
    test: Annotated[bool, Field(strict=True)] = False
    compare: list[str] = []
    runs: dict[Name, Arm]


class Run(NamedTuple):
    """One seed of one variant."""

    name: str
    seed: int
    cfg: Config
    teacher: Run | None  # trains what this one distils from
    work_dir: Path  # with a digest of the settings: others never resume there
    checkpoint: Path  # the last epoch's


class _Loader(yaml.SafeLoader):
    """Notes keys that stand twice, of which YAML keeps the last."""

    twice: list[str]

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As usual."""
        keys = [key.value for key, _ in node.value]
        self.twice += [
            f'line {node.value[at][0].start_mark.line + 1}: {key} stands twice'
            for at, key in enumerate(keys) if key in keys[:at]
        ]
        return super().construct_mapping(node, deep)


# YAML takes 1e-4 for text.
_Loader.add_implicit_resolver('tag:yaml.org,2002:float',
                              re.compile(r'[-+]?\d+[eE][-+]?\d+$'),
                              list('-+0123456789'))


def read_plan(path: Path, work_dirs: Path) -> tuple[Plan, dict[str, Run]]:
    """A plan and the runs that it means, by their folders in ``work_dirs``.

    Raises:
        ConfigError: With a line for all that the file should not say; if
            there is none, for all that its configs do not have.
    """
    plan, errors = _read(path), list[str]()
    variants = [(name, arm, plan.options | options)
                for first, arm in plan.runs.items()
                for name, options in arm.variants(first)]
    runs: dict[str, list[Run]] = {name: [] for name, _, _ in variants}
    if len(runs) < len(variants):
        errors.append('runs: two variants have the same name')
    # Those that need none may be teachers.
    for name, arm, options in sorted(
            variants, key=lambda variant: variant[1].needs is not None):
        cfg, wrong = _config(path.parent / arm.config, options, plan.test)
        teachers = runs.get(arm.needs or '', [])
        if arm.needs is not None:
            if len(teachers) != 1 or 'architecture' in teachers[0].cfg.model:
                wrong.append('needs: expected one seed of a network without '
                             f'a teacher, got {arm.needs}')
            if 'teacher' not in cfg.model or 'model.teacher_ckpt' in options:
                wrong.append('needs: expected a config with a model.teacher, '
                             'and no option model.teacher_ckpt')
        seeds = arm.seeds or plan.seeds
        if len(seeds) > len(set(seeds)):
            wrong.append(f'seeds: expected different ones, got {seeds}')
        errors += [f'runs.{name}: {line}' for line in wrong]
        teacher = teachers[0] if teachers else None
        # All that a result depends on, but for seeds and versions.
        settings = hashlib.sha256(cfg.pretty_text.encode())
        file = Path(cfg.model.get('teacher_ckpt') or '')
        if teacher is not None:
            settings.update('/'.join(teacher.work_dir.parts[-2:]).encode())
        elif file.is_file():
            settings.update(file.read_bytes())
        folder = f'{name}-{settings.hexdigest()[:8]}'
        for seed in seeds:
            own = Config(cfg.to_dict())
            own.merge_from_dict({'randomness.seed': seed})
            if teacher is not None:
                own.model.teacher_ckpt = str(teacher.checkpoint)
            work_dir = work_dirs / plan.name / folder / f'seed-{seed}'
            last = work_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth'
            runs[name].append(Run(name, seed, own, teacher, work_dir, last))
    errors += [f'compare: expected some of {", ".join(runs)}, got {name}'
               for name in plan.compare if name not in runs]
    _refuse(path, errors)
    return plan, {
        str(run.work_dir): run for seeds in runs.values() for run in seeds
    }


def _read(path: Path) -> Plan:
    try:
        loader = _Loader(path.read_text())
        loader.twice = []
        content = loader.get_single_data()
        errors = loader.twice
        plan = Plan.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(' '.join(f'{path}: {error}'.split())) from error
    except ValidationError as error:
        errors += [
            f'{".".join(map(str, mistake["loc"]))}: {mistake["msg"]}'
            for mistake in error.errors()]
    _refuse(path, errors)
    return plan


def _refuse(path: Path, errors: list[str]) -> None:
    if errors:
        raise ConfigError('\n'.join(
            ' '.join(f'{path}: {line}'.split()) for line in errors))


def _config(path: Path, options: dict[str, Any],
            test: bool) -> tuple[Config, list[str]]:
    """A config with options, and what is wrong with it."""
    try:
        base = load_config(path)
        wrong = [f'{path} has no {key} that a plan may set' for key in options
                 if key in OURS or key.split('.')[0] not in base]
        cfg = load_config(path, {**options, 'randomness.seed': 0})
        wrong += [f'{path} has no {key}.{inner}' for key, inner in [
            ('model', 'type'), ('train_cfg', 'max_epochs'),
            ('val_dataloader', 'dataset'),
            *[('test_dataloader', 'dataset')] * test
        ] if not (cfg.get(key) or {}).get(inner)]
    except ConfigError as error:
        wrong = [str(error)]
    if wrong:  # so that others can be judged
        cfg = Config(dict(model={'teacher': 0}, train_cfg={'max_epochs': 0}))
    return cfg, wrong
