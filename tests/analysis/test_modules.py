"""What a recorder can name: the table against mmrazor's own recorders."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from wsld_plugin.analysis import AnalysisError, recordable_modules
from wsld_plugin.checkpoints import student_model
from wsld_plugin.config import load_config

CONFIGS = Path(__file__).parents[2] / 'configs'


def config(name):
    return load_config(CONFIGS / f'{name}.py')


def test_each_row_is_a_source_that_records_its_shape():
    cfg = config('wsld_r34_r18_digits')
    table = recordable_modules(cfg)
    student = table[table.network == 'student'].set_index('source')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        network = MODELS.build(student_model(cfg.model)).eval()
    names = [name for name in student.index if name != 'head.loss_module']
    # After this package, which makes it importable.
    from mmrazor.models.task_modules import RecorderManager
    with DefaultScope.overwrite_default_scope('mmrazor'):
        manager = RecorderManager({
            name: dict(type='ModuleOutputs', source=name) for name in names})
        manager.initialize(network)
    with manager, torch.no_grad():
        network(torch.zeros(1, 3, 16, 16), mode='tensor')
    height = recordable_modules(cfg, shape=(16, 16)).query(
        'network == "student"').set_index('source').output
    for name in names:
        first = manager.get_recorder(name).data_buffer[0]
        if isinstance(first, torch.Tensor):
            assert height[name].split(' x')[0] == str(tuple(first.shape))
    assert student.output['head.fc'] == '(1, 10)'
    assert student.output['head.loss_module'] == '()'
    assert student.parameters['head.fc'] == 512 * 10 + 10
    teacher = table[table.network == 'teacher']
    assert len(teacher) > len(student)


def test_a_cached_teacher_has_its_answers_only():
    table = recordable_modules(config('wsld_r34_r18_digits-cached'))
    assert table[table.network == 'teacher'].source.tolist() == ['head.fc']


@pytest.mark.parametrize('step', [
    dict(type='RandomCrop', crop_size=(32, 64)),
    dict(type='mmpretrain.RandomResizedCrop', scale=(32, 64)),
    dict(type='CenterCrop', crop_size=(64, 32)),
    dict(type='Resize', scale=(64, 32)),
])
def test_the_picture_is_as_high_as_the_pipeline_makes_it(step):
    from mmcv.transforms import TRANSFORMS
    cfg = config('ce_r18_digits')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        made = TRANSFORMS.build(step)(dict(
            img=np.zeros((99, 99, 3), np.uint8), img_shape=(99, 99)))
    assert made['img'].shape == (32, 64, 3)
    cfg.test_dataloader.dataset.pipeline = [step]
    output, = recordable_modules(cfg, 'backbone.layer1').output
    assert output == '(1, 64, 8, 16)'


def test_pattern_and_plain_classifier():
    table = recordable_modules(config('ce_r18_digits'), 'backbone.layer?')
    assert table.source.tolist() == [
        f'backbone.layer{number}' for number in (1, 2, 3, 4)]
    assert set(table.network) == {'student'}


def test_errors_are_one_line():
    cfg = config('ce_r18_digits')
    with pytest.raises(AnalysisError, match='no module is called neck9'):
        recordable_modules(cfg, 'neck9')
    cfg.model.backbone.depth = 17
    with pytest.raises(AnalysisError, match='the student cannot be built'):
        recordable_modules(cfg)
    cfg.pop('model')
    with pytest.raises(AnalysisError, match='has no model'):
        recordable_modules(cfg)
