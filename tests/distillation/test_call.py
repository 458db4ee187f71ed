"""One call on a folder of pictures: what it leaves, reuses and refuses."""
import dataclasses
import json
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from wsld_plugin import distil
from wsld_plugin.checkpoints import read_checkpoint
from wsld_plugin.datasets import PictureFolderError, read_folder
from wsld_plugin.distillation import DistilError, stages
from wsld_plugin.distillation.recipe import Recipe
from wsld_plugin.models import NetworkError, build_network
from wsld_plugin.models.sources import classifier, find_network

ARGUMENTS = dict(
    teacher=['wrn-16-2@none', 'resnet20@none'], teacher_weights=[2, 1],
    student='resnet8', epochs=1, tau='auto', alpha=2, baseline=True,
    size=32, batch_size=8)


@pytest.fixture(scope='module')
def result(pictures):
    return distil(pictures, work_dir=pictures.parent / 'out', **ARGUMENTS)


def times(folder):
    return {path: path.stat().st_mtime for path in folder.rglob('*.*')}


def test_what_it_leaves(result):
    found = result.metrics
    assert found == json.loads((result.report.parent /
                                'metrics.json').read_text())
    *others, (name, student) = found['networks'].items()
    assert [*dict(others), name] == [
        'teacher', 'student alone', 'student distilled']
    assert (student['pictures'], student['accuracy']) == (3, result.accuracy)
    assert found['data']['left_out'] == 1
    assert len(found['trials']) == 6 and found['trials'][0]['tau'] == 4
    assert {trial['alpha'] for trial in found['trials']} == {2}
    best = max(found['trials'], key=lambda trial: trial['accuracy'])
    assert found['settings']['tau'] == best['tau']
    page = result.report.read_text()
    assert 'blue &amp; &lt;b&gt;' in page and 'blue & <b>' not in page


def test_the_student_is_mmpretrains(result):
    cfg = Config.fromfile(result.config)
    model = mmpretrain.get_model(
        Config(dict(model=cfg.model.architecture)),
        pretrained=str(result.student))
    assert model.head.num_classes == 3
    kept = read_checkpoint(str(result.student))['meta']['dataset_meta']
    assert [*kept['classes']] == ['blue & <b>', 'green', 'rød']
    assert result.onnx is not None and result.onnx.exists()


def test_teachers_are_those_that_were_trained(result):
    out = result.report.parent
    joint = read_checkpoint(str(out / 'teacher.pth'))['state_dict']
    seen = 0
    for number in range(2):
        folder = out / 'teachers' / f'{number + 1}_scratch'
        own = read_checkpoint(str(folder / 'epoch_1.pth'))['state_dict']
        for key, value in own.items():
            same = key.replace('networks.0.', f'networks.{number}.', 1)
            assert torch.equal(joint[same], value)
            seen += 1
    assert seen == len(joint)


def test_the_same_call_reuses_another_is_refused(result, pictures, tmp_path):
    out = result.report.parent
    before = times(out)
    again = distil(pictures, work_dir=out, **{
        **ARGUMENTS, 'alpha': 2.0, 'teacher_weights': [2.0, 1.0]})
    assert again.metrics == result.metrics and times(out) == before
    for name, value in dict(epochs=2, alpha=1.5, student='resnet20',
                            seed=1, teacher_weights=[1, 1]).items():
        with pytest.raises(DistilError, match=f'holds a call with {name}='):
            distil(pictures, work_dir=out, **{**ARGUMENTS, name: value})
    moved = pictures / 'rød' / '0.png'
    content = moved.read_bytes()
    moved.write_bytes((pictures / 'green' / '1.png').read_bytes())
    try:
        with pytest.raises(DistilError, match='other pictures'):
            distil(pictures, work_dir=out, **ARGUMENTS)
    finally:
        moved.write_bytes(content)
    assert times(out) == before
    # Finished, and its weights gone.
    done = tmp_path / 'done'
    done.mkdir()
    for name in ('call.json', 'metrics.json'):
        (done / name).write_bytes((out / name).read_bytes())
    with pytest.raises(DistilError, match='holds a call with epochs='):
        distil(pictures, work_dir=done, **{**ARGUMENTS, 'epochs': 2})


def test_weights_are_those_that_were_named(pictures, tmp_path):
    folder = read_folder(pictures)
    recipe = Recipe(folder, tmp_path, '', 1, 1, 8, 32)
    base = build_network('torchvision:resnet18', 7).network
    file = tmp_path / 'torchvision.pth'
    torch.save(base.state_dict(), file)
    # mmengine would start from random weights, with a warning in the log.
    spec = stages._student(
        dataclasses.replace(recipe, student=f'resnet18@{file}'),
        tmp_path / 'start.pth')
    config = classifier(spec, 3, folder.mean, folder.std)
    model = MODELS.build(dict(config, _scope_='mmpretrain'))
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, base.conv1.weight)
    assert torch.equal(model.backbone.layer4[1].bn2.bias,
                       base.layer4[1].bn2.bias)
    # Its classes are called as the folder's, its last layer is another's.
    Config(dict(model=config, test_dataloader=dict(dataset=dict(
        metainfo=dict(classes=folder.classes))))).dump(tmp_path / 'named.py')
    spec = f'{tmp_path / "named.py"}@{file}'
    assert find_network(spec).classes == folder.classes
    assert stages._teacher_source(spec, folder).classes is None


@pytest.mark.parametrize('wrong, error, said', [
    (dict(epochs=0), DistilError, 'epochs must be an integer of at least 1'),
    (dict(seed=None), DistilError, 'seed must be an integer of at least 0'),
    (dict(launcher='pytorch'), DistilError, 'LOCAL_RANK is not set'),
    (dict(tau=-1), DistilError, "tau must be 'auto' or a positive number"),
    (dict(alpha='some'), DistilError, "got 'some'"),
    (dict(teacher_weights=[1]), DistilError, 'each of the 2 teachers'),
    (dict(combine='votes'), DistilError, "'probabilities' or 'logits'"),
    (dict(teacher=[]), DistilError, 'teacher must be'),
    (dict(student=Path('resnet8')), DistilError, 'student must be'),
    (dict(size=3), DistilError, 'size must be'),
    (dict(teacher='resnet34x', teacher_weights=None), NetworkError,
     'resnet34'),
    (dict(student='timm:resnet18'), NetworkError,
     'timm:resnet18: a student must be .*, such as mobilenet-v3-small'),
    (dict(data='nowhere'), PictureFolderError, 'nowhere'),
    (dict(work_dir='pictures/out'), DistilError, 'among the pictures'),
])
def test_wrong_arguments_are_named(pictures, tmp_path, monkeypatch, wrong,
                                   error, said):
    monkeypatch.chdir(pictures.parent)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    arguments = {**ARGUMENTS, 'data': pictures, 'work_dir': tmp_path, **wrong}
    with pytest.raises(error, match=said) as raised:
        distil(**arguments)
    assert '\n' not in str(raised.value)
    assert not any(tmp_path.rglob('*.pth'))
    # What is no folder of pictures takes none.
    assert 'data' not in wrong or not any(tmp_path.iterdir())
