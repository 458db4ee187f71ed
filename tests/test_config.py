"""load_config: each mistake in one line; what runs add to a config."""
import argparse
import re
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config

from wsld_plugin.command_line import read_run_config, use_mixed_precision
from wsld_plugin.config import ConfigError, load_config

ROOT = Path(__file__).parents[1]
BASE = '''
a = dict(b=[dict(c=1), 2], text='x')
model = dict(type='ImageClassifier')
'''
# The text of a config, what its options are, and what is said of it.
MISTAKES = {
    'base': ("\n_base_ = ['base.py', 'gone.py']", (),
             'cannot read the config {path}, its base {tmp}/gone.py: no such '
             'file'),
    'base of a package': ("_base_ = 'mmpretrain::resnet/gone.py'", (),
                          'cannot read the config {path}: .*gone.py'),
    'base with an error': ("_base_ = 'broken.py'", (),
                           'its base {tmp}/broken.py, line 3: NameError: name '
                           "'oops' is not defined"),
    'syntax': ('x = 1\ny = dict(', (), "{path}, line 2: .* was never closed"),
    'name': ('x = 1\n\ny = 2 * oops', (), '{path}, line 3: NameError: name '
             "'oops' is not defined"),
    'division': ('def f():\n    return 1 / 0\nx = f()', (),
                 '{path}, line 2: ZeroDivisionError: '),
    'duplicate': ("_base_ = ['base.py', 'base_too.py']", (),
                  'KeyError: .Duplicate key is not allowed'),
    'import': ("custom_imports = dict(imports=['gone_module'])", (),
               "the custom_imports of {path}: .*No module named 'gone_module'"
               '.*PYTHONPATH'),
    'misspelt': ('optim_wraper = dict()', (), '{path} sets optim_wraper, '
                 'which nothing reads; similar: optim_wrapper'),
    'misspelt, of the base': ("_base_ = 'base.py'\nmodle = dict(b=1)", (),
                              'sets modle, .* similar: model'),
    'misspelt option': (BASE, ('train_dataloder.batch_size=2', ),
                        'sets train_dataloder, .* similar: train_dataloader'),
    'through a text': (BASE, ('a.text.b=1', ),
                       r'--cfg-options a.text.b=1: the config has nothing'),
    'index': (BASE, ('a.b.2.c=1', ), r'--cfg-options a.b.2.c=1: the config'),
    'no value': (BASE, ('a.text', ), '--cfg-options a.text: expected KEY=VAL'),
    'no key': (BASE, ('a..b=1', ), '--cfg-options a..b=1: expected KEY=VALUE'),
    'brackets': (BASE, ('a.text=[1,(2]', ), r'--cfg-options a.text=\[1,\(2\]'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes(name, tmp_path):
    text, options, message = MISTAKES[name]
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'base_too.py').write_text(BASE)
    (tmp_path / 'broken.py').write_text('x = 1\n\ny = [oops]\n')
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(
            ConfigError, match=message.format(path=path, tmp=tmp_path)) as e:
        load_config(path, options)
    assert '\n' not in str(e.value)


def test_options_are_what_they_say(tmp_path, monkeypatch):
    path = tmp_path / 'config.py'
    path.write_text(BASE)
    odd = tmp_path / 'a, b=c.pth'
    odd.touch()
    given = {'a.b.0.c': ('3', 3), 'a.text': (str(odd), str(odd)),
             'a.n': ('None', None), 'a.l': ('[1,x]', [1, 'x']),
             'a.m': ('1e-3,2', [1e-3, 2]), 'a.q': ('"1, 2"', '1, 2'),
             'a.d': ('3', 3)}
    monkeypatch.chdir(tmp_path)
    (tmp_path / '3').mkdir()
    cfg = load_config(path, [f'{key}={text}'
                             for key, (text, _) in given.items()])
    assert cfg.a == dict(
        b=[dict(c=3), 2], text=str(odd), n=None, l=[1, 'x'], m=[1e-3, 2],
        q='1, 2', d=3)
    values = {key: value for key, (_, value) in given.items()}
    assert load_config(path, values).a == cfg.a


def test_variables_of_configs_are_left_alone(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('models = [dict(type="A")]\nmodel = models[0]\n'
                    'model2 = 1\ntrain_pipeline = 2\nresnet = 3\n')
    assert load_config(path).model2 == 1


def test_no_false_alarm_in_others_configs():
    """Bases and leaves; those that cannot be read are others' own."""
    folders = [ROOT / 'configs',
               Path(mmpretrain.__file__).parent / '.mim' / 'configs']
    paths = [path for folder in folders for path in folder.rglob('*.py')]
    alarms, read = [], 0
    for path in sorted(paths)[::7]:
        try:
            read += bool(load_config(path))
        except ConfigError as error:
            alarms += ['nothing reads' in str(error)]
    assert read > 60 and not any(alarms)


@pytest.mark.parametrize('name, value, said', [
    ('model', 'resnet18', 'sets model to a str, \'resnet18\', expected a '
     'dict'),
    ('train_dataloader', 3, 'sets train_dataloader to a int, 3,'),
    ('custom_hooks', dict(type='x'), 'expected a list'),
    ('param_scheduler', 'x', 'expected a dict or list'),
    ('default_hooks', 0.5, 'sets default_hooks to a float, 0.5,'),
    ('load_from', 0.5, 'sets load_from to a float, 0.5, expected a str'),
    ('resume', 'auto', 'expected a bool')])
def test_values_of_another_kind_are_refused(tmp_path, name, value, said):
    path = tmp_path / 'config.py'
    path.write_text(f'{name} = {value!r}')
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(path, {'work_dir': 'x'})


def test_custom_imports_are_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'my_own_module.py').write_text('')
    path = tmp_path / 'config.py'
    path.write_text("custom_imports = dict(imports=['my_own_module'])")
    load_config(path)
    assert 'my_own_module' in sys.modules


CLASSIFIER = dict(type='mmpretrain.ImageClassifier')
PREPROCESSED = dict(type='x', data_preprocessor=dict(
    type='mmpretrain.ClsDataPreprocessor'))
SEGMENTOR = dict(type='EncoderDecoder')


@pytest.mark.parametrize('model, top, collated', [
    (CLASSIFIER, {}, True),
    (PREPROCESSED, {}, True),
    (dict(type='Distill', architecture=CLASSIFIER), {}, True),
    (dict(CLASSIFIER, data_preprocessor=dict(mean=[1])), {}, True),
    (CLASSIFIER, dict(data_preprocessor=dict(type='Other')), False),
    (SEGMENTOR, {}, False),
    # To be refused where they are built.
    (dict(CLASSIFIER, data_preprocessor=True), {}, False),
    (dict(type='Distill', architecture='text'), {}, False),
    (dict(PREPROCESSED, type='Distill', architecture=SEGMENTOR), {}, True),
    (dict(type='Distill', architecture=SEGMENTOR), {}, False),
])
def test_collation_is_of_classification_alone(model, top, collated, tmp_path):
    path = tmp_path / 'config.py'
    Config(dict(model=model, train_dataloader=dict(num_workers=2),
                val_dataloader=dict(num_workers=2, collate_fn='own'),
                **top)).dump(path)
    cfg = read_run_config(argparse.Namespace(
        config=str(path), cfg_options=[], work_dir=None, launcher='none',
        local_rank=None))
    rest = dict(num_workers=2, pin_memory=torch.cuda.is_available())
    assert cfg.train_dataloader == dict(
        rest, persistent_workers=False,
        **dict(collate_fn=dict(type='default_collate')) if collated else {})
    assert cfg.val_dataloader == dict(
        rest, collate_fn='own', persistent_workers=True)
    assert 'test_dataloader' not in cfg
    assert cfg.work_dir == './work_dirs/config'


def test_mixed_precision_is_of_the_device():
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD'))))
    use_mixed_precision(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.get('dtype') == (
        None if torch.cuda.is_available() else 'bfloat16')
