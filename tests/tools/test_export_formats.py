"""export_student.py's other formats and complexity.py, as a user runs them."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

STUDENT = Path(__file__).with_name('tiny_student.py')
CONFIGS = Path(__file__).parents[2] / 'configs'

Call = Callable[..., None]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('student') / 'r18.pth'
    cfg = Config.fromfile(STUDENT)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=weights, meta=dict(cfg=cfg.pretty_text)), path)
    return path


def test_onnx_is_compared_in_print(checkpoint: Path, call_tool: Call,
                                   tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip('onnxruntime')
    call_tool('export_student.py', checkpoint, f'{tmp_path}/out/', '--format',
              'onnx', '--opset', 17, '--with-preprocessing', '--images', 35)
    *_, compared, path = capsys.readouterr().out.splitlines()
    assert path == f'{tmp_path}/out/r18.onnx'
    assert Path(path).is_file()
    assert re.fullmatch(
        r'Compared with the student on 35 pictures: largest difference of a '
        r'logit [\d.e-]+ \(largest logit [\d.e-]+\), same class for 35/35\.',
        compared)


@pytest.mark.parametrize('arguments, message', [
    (('{checkpoint}', '--format', 'onnx', '--opset', 3), 'opset is 3, expect'),
    (('{checkpoint}', '--format', 'torchscript', '--opset', 17), 'has none'),
    (('{checkpoint}', '--format', 'torchscript', '--images', 0), '2 or more'),
    (('{tmp}/nowhere.pth', '--format', 'torchscript'), 'can not be found'),
    (('{bare}', '--format', 'torchscript'), 'name the config file'),
    (('{bare}', '--format', 'torchscript', '--config', '{tmp}/no.py'),
     'no.py'),
])
def test_mistakes_are_told_in_one_line(arguments: tuple, message: str,
                                       checkpoint: Path, call_tool: Call,
                                       tmp_path: Path) -> None:
    bare = tmp_path / 'bare.pth'
    torch.save(torch.load(checkpoint)['state_dict'], bare)
    names = dict(checkpoint=checkpoint, tmp=tmp_path, bare=bare)
    source, *options = (str(item).format(**names) for item in arguments)
    with pytest.raises(SystemExit) as leaving:
        call_tool('export_student.py', source, f'{tmp_path}/out/', *options)
    line = leaving.value.code
    assert isinstance(line, str)
    assert line.startswith('export_student.py: ') and message in line
    assert '\n' not in line
    assert not (tmp_path / 'out').exists()


def test_options_of_other_formats_are_refused(
        checkpoint: Path, call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        call_tool('export_student.py', checkpoint, tmp_path, '--opset', 17)
    assert 'need another --format than pth' in capsys.readouterr().err


def test_complexity_of_both_networks(call_tool: Call,
                                     capsys: pytest.CaptureFixture) -> None:
    call_tool('complexity.py', CONFIGS / 'wsld_r34_r18_in1k.py')
    out = capsys.readouterr().out
    assert 'One picture of 224 x 224' in out
    # torchvision's own figures: 1.814 and 3.664 GFLOPs without pooling.
    rows = {
        row[0]: [int(cell.replace(',', '')) for cell in row[1:]]
        for row in (re.findall(r'[\w,]+', line)
                    for line in out.splitlines() if line.startswith('│'))
    }
    assert rows['student'][0] == 11_689_512
    assert rows['teacher'][0] == 21_797_672
    assert rows['student'][1] == pytest.approx(1.814e9, rel=0.005)
    assert rows['teacher'][1] == pytest.approx(3.664e9, rel=0.005)


def test_complexity_of_a_digit(call_tool: Call,
                               capsys: pytest.CaptureFixture) -> None:
    call_tool('complexity.py', STUDENT)
    out = capsys.readouterr().out
    assert 'One picture of 32 x 32' in out and 'teacher' not in out
    with pytest.raises(SystemExit, match=r'^complexity.py: --size is 0'):
        call_tool('complexity.py', STUDENT, '--size', 0)
