"""What cannot be done is told in one line, and leaves nothing."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from processes import DISTILLATION, STUDENT

TRAIN = 'train.py {distillation} '
SET = TRAIN + '--cfg-options '
TEST = 'test.py nowhere.py nowhere.pth '
REGULARIZATION = 'analyze.py regularization '
VARIANCE = 'analyze.py bias-variance {student} '
# What is said, and of which command; files are made as their names say.
MISTAKES: dict[str, str] = {
    'cannot build SDG: ': SET + 'optim_wrapper.optimizer.type=SDG',
    'cannot build train_loop: invalid literal': SET + 'train_cfg.max_epochs=x',
    'sets val_dataloader.num_workers to [1], expected an integer':
    SET + 'val_dataloader.num_workers=[1]',
    'cannot build type=None: type must be': SET +
    'default_hooks.timer.type=None',
    'cannot download http://127.0.0.1:9/teacher.pth: <urlopen': SET +
    'model.teacher_ckpt=http://127.0.0.1:9/teacher.pth',
    'auto_scale_lr.base_batch_size': TRAIN +
    '--auto-scale-lr --cfg-options auto_scale_lr=None',
    'cannot replace optim_wrapper.type=ApexOptimWrapper': TRAIN +
    '--amp --cfg-options optim_wrapper.type=ApexOptimWrapper',
    "optim_wrapper.dtype is 'float16'": TRAIN +
    '--amp --cfg-options optim_wrapper.dtype=float16',
    'was not started by that launcher': TRAIN + '--launcher pytorch',
    'text.pth is no checkpoint: it starts with': TRAIN + '--resume text.pth',
    '{exported} holds the student alone, and no training': TRAIN +
    '--resume {exported}',
    # With mmengine's own hook.
    '{exported} holds the student alone, and no training: ':
    'train.py {student} --resume {exported} --cfg-options '
    'default_hooks.checkpoint.type=CheckpointHook',
    '{exported} does not fit the ImageClassifier':
    'test.py {student} {exported} --cfg-options model.backbone.depth=34',
    # Before the evaluation.
    'pred goes to a file whose name ends with .pkl or': TEST + '--out x.json',
    'name ends with .json': TEST + '--out x.csv --out-item metrics',
    '--out-item needs --out': TEST + '--out-item metrics',
    'teacher.pth holds no student:': 'export_student.py teacher.pth out/',
    'name the config file': 'export_student.py bare.pth out/ --onnx',
    'cannot read the config no.py':
    'export_student.py bare.pth out/ --onnx --config no.py',
    'bare.pth does not fit the ImageClassifier':
    'export_student.py bare.pth out/ --onnx --config wrong.py',
    'no module is called zzz': 'modules.py {distillation} zzz',
    'cannot read the config nowhere.py': REGULARIZATION +
    'nowhere.py epoch_1.pth',
    'missing.pth is missing': REGULARIZATION + '{distillation} missing.pth',
    'the config has no model.distiller': REGULARIZATION +
    '{student} missing.pth',
    'teacher_ckpt is not set, and there is no teacher in {exported}':
    REGULARIZATION + '{distillation} {exported}',
    '{exported} does not fit the ImageClassifier: ': REGULARIZATION +
    '{distillation} {exported} --cfg-options '
    'model.architecture.backbone.depth=34',
    'there is no model.teacher_ckpt=missing.pth':
    'analyze.py bias-variance {distillation} --cfg-options '
    'model.teacher_ckpt=missing.pth',
    'tiny_distillation has another training set than tiny_student':
    VARIANCE + '{distillation}',
    'tiny_student has no test_dataloader': VARIANCE +
    '--cfg-options test_dataloader=None',
    'a variance over runs takes at least 2 of them, got 1': VARIANCE +
    '--runs 1',
    'must be at least 1 epoch, got 0': VARIANCE + '--interval 0',
    'nothing holds no': 'analyze.py runs nothing',
}


@pytest.mark.parametrize('message', MISTAKES)
def test_mistakes_are_told_in_one_line(
        message: str, exported: Path, refusal: Callable[..., str],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    Path('text.pth').write_text('lost')
    torch.save({'state_dict': {'teacher.w': torch.rand(1)}}, 'teacher.pth')
    torch.save(torch.load(exported)['state_dict'], 'bare.pth')
    wrong = Config.fromfile(STUDENT)
    wrong.model.head.num_classes = 3
    wrong.dump('wrong.py')
    made = {path.name for path in tmp_path.iterdir()}
    names = dict(exported=exported, student=STUDENT,
                 distillation=DISTILLATION)
    tool, *args = MISTAKES[message].split()
    if tool == 'train.py' and torch.cuda.is_available():
        pytest.skip('some of its mistakes are none with a GPU')
    if '--onnx' in args:
        pytest.importorskip('onnxscript')
    line = refusal(tool, *(arg.format(**names) for arg in args))
    assert message.format(**names) in line
    logs = {'work_dirs'} if tool in ('train.py', 'test.py') else set()
    assert {path.name for path in tmp_path.iterdir()} - logs == made
