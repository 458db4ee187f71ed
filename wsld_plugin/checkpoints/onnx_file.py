"""Write the student for programs that know neither mmpretrain nor us."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..config import load_config
from .atomic import write_atomically
from .loading import CheckpointError, load_weights, read_checkpoint
from .student import export_path, student_checkpoint, student_model

_PICTURES = 100
# Of all pictures together.
_PIXELS = 2**25
# Of the largest logit: float32 sums in another order stay far below, a wrong
# mean or a lost layer is far above.
_TOLERANCE = 1e-4


class OnnxError(CheckpointError):
    """A student cannot be written as ONNX, or differs there."""


class OnnxStudent(NamedTuple):
    """An ONNX file that was compared with the student it was made from."""

    path: Path
    # How many pictures both have seen.
    images: int
    # Between any two logits; and the magnitude of the student's largest.
    largest_difference: float
    largest_logit: float
    # For how many of the rows, pictures or pixels, both named the same class.
    equal_top1: int
    rows: int


def export_onnx(source: str,
                out: str,
                *,
                config: str | None = None,
                with_preprocessing: bool = False) -> OnnxStudent:
    """Write a checkpoint's student as an ONNX file.

    The file maps a batch of any size, ``images`` of shape (N, 3, H, W), to
    ``logits`` of shape (N, C), those of pixels at the pictures' one size of
    shape (N, C, H, W). It is read back, run on pictures of the student's test
    set, or where there is none on pieces of photographs that come with
    scikit-learn, and kept only if its logits are the student's.

    Args:
        source: Path or URL of a checkpoint of a distiller or classifier.
        out: As for :func:`export_path`.
        config: Config file, for a checkpoint that does not hold its own.
        with_preprocessing: Whether the file takes pictures as OpenCV reads
            them (uint8, blue first) and normalises them itself, or takes
            normalised ones (float32).

    Returns:
        The file and the comparison.

    Raises:
        CheckpointError: If ``source`` holds no student, or one that does not
            fit the config.
        ConfigError: If ``config`` cannot be read.
        OnnxError: If packages or the config are missing, or the file's
            logits are not the student's.
    """
    _check()
    checkpoint = student_checkpoint(read_checkpoint(source), source)
    cfg = _student_config(checkpoint['meta']['cfg'], config, source)
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmpretrain')):
        pictures = _pictures(cfg)
        classifier = MODELS.build(cfg.model)
    load_weights(classifier, checkpoint['state_dict'], source)
    student = _Logits(classifier, with_preprocessing).eval()
    path = export_path(out, checkpoint, source, '.onnx')
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if not with_preprocessing:
            pictures = _preprocessed(classifier, pictures)
        part = Path(folder, path.name)
        # Of one, torch would take the size of the batch for a constant.
        _write(student, torch.cat([pictures] * 2)[:2], part)
        written = OnnxStudent(path, *_compare(student, _read(part), pictures))
        limit = _TOLERANCE * written.largest_logit
        # So that NaN is not below it either.
        if not written.largest_difference <= limit:
            raise OnnxError(
                f'{path.name} was not kept: its logits differ from the '
                f"student's by up to {written.largest_difference:.3g}, "
                f'expected at most {limit:.3g}')
        write_atomically(path, part.read_bytes())
    return written


class _Logits(nn.Module):
    """A classifier with one input and one output."""

    def __init__(self, classifier: nn.Module,
                 with_preprocessing: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.with_preprocessing = with_preprocessing

    def forward(self, images: Tensor) -> Tensor:
        if self.with_preprocessing:
            images = _preprocessed(self.classifier, images)
        logits = self.classifier(images, mode='tensor')
        if not isinstance(logits, Tensor) or logits.dim() != 4:
            return logits
        # As mmseg does before it takes the largest.
        return interpolate(logits, images.shape[2:], mode='bilinear',
                           align_corners=bool(self.classifier.align_corners))


def _preprocessed(classifier: Any, images: Tensor) -> Tensor:
    preprocessor = classifier.data_preprocessor
    if not hasattr(preprocessor, '_channel_conversion'):
        return preprocessor(dict(inputs=images))['inputs']
    # mmseg's goes through a list, which has no length of any size.
    if preprocessor._channel_conversion:
        images = images.flip(1)
    images = images.float()
    if preprocessor._enable_normalize:
        images = (images - preprocessor.mean) / preprocessor.std
    return images


def _check() -> None:
    """Refuse what could not be written, before any work."""
    missing = [
        name for name in ('onnx', 'onnxruntime', 'onnxscript')
        if find_spec(name) is None
    ]
    if missing:
        raise OnnxError(
            f'ONNX needs {", ".join(missing)}: pip install '
            f'{" ".join(missing)}, or this package with its extra "deploy"')
    if 'dynamic_shapes' not in signature(torch.onnx.export).parameters:
        raise OnnxError(
            f'ONNX needs torch 2.5 or newer, this is {torch.__version__}')


def _student_config(text: str, config: str | None, source: str) -> Config:
    if config is not None:
        cfg = load_config(config)
        cfg.model = student_model(cfg.model)
    elif text:
        cfg = Config.fromstring(text, file_format='.py')
    else:
        raise OnnxError(f'{source} does not hold the config of its student: '
                        'name the config file')
    if 'test_dataloader' not in cfg:
        raise OnnxError('the config has no test_dataloader, whose pictures '
                        'the file is compared on')
    return cfg


def _pictures(cfg: Config) -> Tensor:
    """Pictures as the test's pipeline leaves them, (N, 3, H, W) uint8."""
    test_set = cfg.test_dataloader.dataset
    try:
        dataset = DATASETS.build(test_set)
        packed = [dataset[i] for i in range(min(_PICTURES, len(dataset)))]
    except FileNotFoundError:
        from sklearn.datasets import load_sample_images
        photos = load_sample_images().images
        steps = Compose([
            step for step in test_set.pipeline
            if not step['type'].split('.')[-1].startswith('Load')
        ])
        packed = []
        for i in range(_PICTURES):
            # Of 427 x 640 pixels, in OpenCV's order of colours.
            top, left, size = 13 * i % 170, 29 * i % 380, 128 + i
            piece = photos[i % 2][top:top + size, left:left + size, ::-1]
            packed.append(
                steps(dict(img=piece.copy(), img_shape=piece.shape[:2],
                           ori_shape=piece.shape[:2])))
    inputs = [item['inputs'] for item in packed]
    # Those of segmentation may differ; the file is for one size.
    inputs = [one for one in inputs if one.shape == inputs[0].shape]
    return torch.stack(inputs[:1 + _PIXELS // inputs[0][0].numel()])


def _compare(student: nn.Module, written: Callable[[Tensor], Tensor],
             images: Tensor) -> tuple[int, float, float, int, int]:
    # A batch of one first: a size that was traced as a constant shows.
    size = min(32, 1 + _PIXELS // 8 // images[0][0].numel())
    largest = difference = torch.zeros(())
    same = rows = 0
    for batch in [images[:1], *images[1:].split(size)]:
        if not len(batch):
            continue
        expected, got = student(batch), written(batch)
        if got.shape != expected.shape:
            raise OnnxError(
                'the file was not kept: its logits have the shape '
                f'{tuple(got.shape)}, expected {tuple(expected.shape)}')
        # NaN stays NaN, as it would not in Python's max.
        difference = torch.maximum(difference, (got - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
        equal = got.argmax(1) == expected.argmax(1)
        same, rows = same + int(equal.sum()), rows + equal.numel()
    return len(images), float(difference), float(largest), same, rows


def _write(student: nn.Module, images: Tensor, path: Path) -> None:
    with catch_warnings():
        # Of the exporter's own code.
        for category in (FutureWarning, DeprecationWarning):
            simplefilter('ignore', category)
        # external_data: the weights go into the same file.
        torch.onnx.export(
            student, (images, ), str(path), input_names=['images'],
            output_names=['logits'], dynamo=True, external_data=False,
            dynamic_shapes=dict(images={0: torch.export.Dim('batch')}),
            verbose=False)


def _read(path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors
    try:
        onnx.checker.check_model(str(path))
        session = onnxruntime.InferenceSession(
            str(path), providers=['CPUExecutionProvider'])
    except (onnx.checker.ValidationError, errors.Fail, errors.InvalidGraph,
            errors.NotImplemented) as error:
        raise OnnxError(f'{path.name} was not kept: '
                        f'{" ".join(str(error).split())}') from error
    return lambda images: torch.from_numpy(
        session.run(['logits'], dict(images=images.numpy()))[0])
