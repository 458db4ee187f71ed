"""Configs and plans with something removed, misspelt or of another type."""
import argparse
import contextlib
import io
import json
from functools import partial
from pathlib import Path
from unittest.mock import patch

import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger

from wsld_plugin import command_line, config

from .cases import DAMAGES, REFUSED, expect


@contextlib.contextmanager
def plain(draw):
    """Mostly without yapf, which lays each config out in half a second."""
    with patch.object(Config, 'pretty_text', property(
            lambda self: repr(self.to_dict()))) if draw.random() < 0.95 else (
                contextlib.nullcontext()):
        yield


VALUES = (None, '', 'text', 3, -1, 0.5, [], {}, True, [1], {'a': 1}, 'type',
          [{}], float('nan'), 10**20, {'type': 'text'})


def places(part):
    """Each container with each of its keys."""
    keys = [*part] if isinstance(part, dict) else (
        range(len(part)) if isinstance(part, list) else [])
    return [(part, key) for key in keys] + [
        place for key in keys for place in places(part[key])]


def removed(part, key, draw):
    del part[key]


def retyped(part, key, draw):
    part[key] = draw.choice(VALUES)


def misspelt(part, key, draw):
    if isinstance(part, list):
        key, part = draw.choice(places(part) or [(0, part)])[::-1]
    if not isinstance(part, dict) or not key:
        return retyped(part, key, draw)
    at = draw.randrange(len(key))
    value, letter = part.pop(key), draw.choice(['', 'e', '_', key[at] * 2])
    part[key[:at] + letter + key[at + 1:]] = value
    return None


CHANGES = dict(removed=removed, retyped=retyped, misspelt=misspelt)


def changed(content, change, draw):
    content = json.loads(json.dumps(content))
    change(*draw.choice(places(content)), draw)
    return content


def configs(folder):
    bases = [config.load_config(Path(__file__).parents[1] / 'tools' / (
        f'tiny_{name}.py')).to_dict() for name in ('student', 'distillation')]
    bases = json.loads(json.dumps(bases, default=str))

    def build(change, draw):
        path, base = folder / 'config.json', draw.choice(bases)
        path.write_text(json.dumps(changed(base, change, draw)))
        args = argparse.Namespace(
            config=str(path), cfg_options=None, work_dir=str(folder / 'run'),
            launcher='none', local_rank=None)
        said, noise = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(
                    noise), plain(draw), command_line.one_line_errors():
                cfg = command_line.read_run_config(args)
                command_line.build_runner(cfg)
        except SystemExit as leaving:
            lines = said.getvalue().splitlines()
            expect(leaving.code == 2 and lines and len(lines[-1]) > 20,
                   f'exit {leaving.code} and {lines}')
            return REFUSED
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in logger.handlers:
                    handler.close()
            MMLogger._instance_dict.clear()
        return 'built'

    return {name: partial(build, change) for name, change in CHANGES.items()}


def plans(folder):
    from plan import read_plan
    network = dict(type='text', head=dict(num_classes=3))
    common = dict(train_cfg=dict(max_epochs=2), optim_wrapper=dict(lr=0.1),
                  val_dataloader=dict(dataset=dict(type='x')))
    (folder / 'ce.json').write_text(json.dumps(dict(common, model=network)))
    (folder / 'kd.json').write_text(json.dumps(dict(common, model=dict(
        type='text', architecture=network, teacher=network,
        teacher_ckpt=''))))
    content = dict(
        name='plan', seeds=[0, 1], options={'optim_wrapper.lr': 0.2},
        compare=['ce'], runs=dict(
            teacher=dict(config='ce.json', seeds=[0]),
            ce=dict(config='ce.json'),
            kd=dict(config='kd.json', needs='teacher', grid=dict(
                tau={'model.tau': [2, 4]}, alpha={'model.alpha': [1]}))))
    text = yaml.safe_dump(content).encode()
    path = folder / 'plan.yml'

    def read(data, draw):
        path.write_bytes(data(draw))
        try:
            with plain(draw):
                read_plan(path, folder / 'out')
        except config.ConfigError as error:
            for line in str(error).splitlines():
                expect(line.startswith(f'{path}: ') and len(line) < 2000,
                       f'not one line: {line}')
            return REFUSED
        return 'read'

    return {
        **{f'text {name}': partial(read, partial(damage, text))
           for name, damage in DAMAGES.items()},
        **{name: partial(read, lambda draw, change=change: yaml.safe_dump(
            changed(content, change, draw)).encode())
           for name, change in CHANGES.items()}}
