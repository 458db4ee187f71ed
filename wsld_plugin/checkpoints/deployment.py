"""Write the student for programs that know neither mmpretrain nor us."""
from __future__ import annotations

import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from .atomic import write_atomically
from .loading import load_weights, read_checkpoint
from .student import student_checkpoint, student_model

SUFFIXES = {'onnx': '.onnx', 'torch_export': '.pt2', 'torchscript': '.pt'}
# Of the largest logit: float32 sums in another order stay far below, a wrong
# mean or a lost layer is far above.
_TOLERANCE = 1e-4
_BATCH = 32
# The oldest that inference engines still ask for and torch still writes.
_OLDEST_OPSET = 11


class DeploymentError(ValueError):
    """A student cannot be written in a format, or differs in it."""


class DeployedStudent(NamedTuple):
    """A file that was compared with the student it was made from.

    Attributes:
        path: The file written.
        images: How many pictures both have seen.
        largest_difference: Between any two logits.
        largest_logit: Magnitude of the student's largest logit.
        equal_top1: For how many pictures both named the same class.
    """

    path: Path
    images: int
    largest_difference: float
    largest_logit: float
    equal_top1: int


def deploy_student(source: str,
                   out: str,
                   file_format: str,
                   *,
                   config: str | None = None,
                   opset: int | None = None,
                   with_preprocessing: bool = False,
                   images: int = 100) -> DeployedStudent:
    """Write a checkpoint's student as a file that runs by itself.

    The file maps a batch of any size, ``images`` of shape (N, 3, H, W), to
    ``logits`` of shape (N, C). It is read back, run on pictures of the
    student's test set and kept only if its logits are the student's.
    Where that set is not on this machine, pieces of two photographs that
    come with scikit-learn take its place.

    Args:
        source: Path or URL of a checkpoint of a distiller or classifier.
        out: The file, or an existing folder or one with a final slash, in
            which the name is the experiment's.
        file_format: ``'onnx'``, ``'torch_export'`` or ``'torchscript'``.
        config: Config file of the distiller or classifier, for a checkpoint
            that does not hold its config.
        opset: ONNX opset; by default that which torch prefers.
        with_preprocessing: Whether the file takes pictures as OpenCV reads
            them (uint8, blue first) and normalises them itself, or takes
            normalised ones (float32).
        images: How many pictures to compare on.

    Returns:
        The file and the comparison.

    Raises:
        FileNotFoundError: If ``source`` or ``config`` is missing.
        CheckpointMismatchError: If ``source`` holds no student, or one that
            does not fit the config.
        DeploymentError: If the format cannot be written here, the config is
            missing, an argument is out of its range or the file's logits
            are not the student's.
    """
    if file_format not in SUFFIXES:
        raise DeploymentError(
            f'file_format is {file_format!r}, expected one of '
            f'{", ".join(SUFFIXES)}')
    if opset is not None and file_format != 'onnx':
        raise DeploymentError(
            f'opset is {opset}, but {file_format} has none')
    if opset is not None and opset < _OLDEST_OPSET:
        raise DeploymentError(
            f'opset is {opset}, expected {_OLDEST_OPSET} or newer')
    if images < 2:
        raise DeploymentError(f'images is {images}, expected 2 or more')
    _check_packages(file_format)
    checkpoint = student_checkpoint(read_checkpoint(source), source)
    cfg = _student_config(checkpoint['meta']['cfg'], config, source)
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmpretrain')):
        pictures = _pictures(cfg, images)
        classifier = MODELS.build(cfg.model)
    load_weights(classifier, checkpoint['state_dict'], source)
    student = _Logits(classifier, with_preprocessing).eval()
    if not with_preprocessing:
        with torch.no_grad():
            pictures = _preprocessed(classifier, pictures)

    experiment = checkpoint['meta'].get('experiment_name', Path(source).stem)
    path = _target(out, experiment, SUFFIXES[file_format])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        part = Path(folder, path.name)
        # torch.export keeps its example in the file, with all of its memory.
        example = pictures[:2].clone()
        _WRITERS[file_format](student, example, part, opset)
        deployed = DeployedStudent(
            path, *_compare(student, _READERS[file_format](part), pictures))
        limit = _TOLERANCE * deployed.largest_logit
        # So that NaN is not below it either.
        if not deployed.largest_difference <= limit:
            raise DeploymentError(
                f'{path.name} was not kept: its logits differ from the '
                f"student's by up to {deployed.largest_difference:.3g}, "
                f'expected at most {limit:.3g}')
        write_atomically(path, part.read_bytes())
    return deployed


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
        return self.classifier(images, mode='tensor')


def _preprocessed(classifier: Any, images: Tensor) -> Tensor:
    return classifier.data_preprocessor(dict(inputs=images))['inputs']


def _check_packages(file_format: str) -> None:
    if file_format == 'torch_export' and find_spec('torch.export') is None:
        raise DeploymentError(
            f'torch {torch.__version__} has no torch.export: use onnx or '
            'torchscript, or a newer torch')
    needed = ('onnx', 'onnxruntime', 'onnxscript')
    missing = [name for name in needed if find_spec(name) is None]
    if file_format == 'onnx' and missing:
        raise DeploymentError(
            f'onnx needs {", ".join(missing)}: pip install '
            f'{" ".join(missing)}, or this package with its extra "deploy"')


def _student_config(text: str, config: str | None, source: str) -> Config:
    if config is not None:
        cfg = Config.fromfile(config)
        cfg.model = student_model(cfg.model)
        return cfg
    if not text:
        raise DeploymentError(f'{source} does not hold the config of its '
                              'student: name the config file')
    return Config.fromstring(text, file_format='.py')


def _target(out: str, experiment: str, suffix: str) -> Path:
    path = Path(out)
    if out.endswith('/') or path.is_dir():
        path = path / re.sub(r'_\d{8}_\d{6}$', '', experiment)
    return (path if path.suffix == suffix else
            path.with_name(path.name + suffix))


def _pictures(cfg: Config, count: int) -> Tensor:
    """Pictures as the test's pipeline leaves them, (N, 3, H, W) uint8."""
    if 'test_dataloader' not in cfg:
        raise DeploymentError('the config has no test_dataloader, whose '
                              'pictures the file is compared on')
    test_set = cfg.test_dataloader.dataset
    try:
        dataset = DATASETS.build(test_set)
        count = min(count, len(dataset))
        packed = [dataset[index] for index in range(count)]
    except FileNotFoundError:
        packed = _pieces_of_photographs(test_set.pipeline, count)
    return torch.stack([item['inputs'] for item in packed])


def _pieces_of_photographs(pipeline: list[dict],
                           count: int) -> list[dict[str, Any]]:
    from sklearn.datasets import load_sample_images
    photos = [
        torch.from_numpy(image.copy()) for image in load_sample_images().images
    ]
    transform = Compose([
        step for step in pipeline
        if not step['type'].split('.')[-1].startswith('LoadImage')
    ])
    random = torch.Generator().manual_seed(0)
    packed = []
    for index in range(count):
        photo = photos[index % len(photos)]
        height, width = photo.shape[:2]
        size = int(torch.randint(128, height, (), generator=random))
        top = int(torch.randint(height - size + 1, (), generator=random))
        left = int(torch.randint(width - size + 1, (), generator=random))
        # The pipeline expects OpenCV's order of colours.
        piece = photo[top:top + size, left:left + size].flip(-1).numpy()
        packed.append(
            transform(
                dict(
                    img=piece,
                    img_shape=piece.shape[:2],
                    ori_shape=piece.shape[:2])))
    return packed


def _compare(student: nn.Module, deployed: Callable[[Tensor], Tensor],
             images: Tensor) -> tuple[int, float, float, int]:
    # A batch of one first: a size that was traced as a constant shows.
    batches = [images[:1], *images[1:].split(_BATCH)]
    results = [(student(batch), deployed(batch)) for batch in batches]
    for expected, got in results:
        if got.shape != expected.shape:
            raise DeploymentError(
                'the file was not kept: its logits have the shape '
                f'{tuple(got.shape)}, expected {tuple(expected.shape)}')
    expected, got = map(torch.cat, zip(*results))
    return (len(images), float((got - expected).abs().max()),
            float(expected.abs().max()),
            int((got.argmax(1) == expected.argmax(1)).sum()))


def _write_onnx(student: nn.Module, images: Tensor, path: Path,
                opset: int | None) -> None:
    import onnx
    options: dict[str, Any] = dict(
        input_names=['images'], output_names=['logits'], opset_version=opset)
    known = inspect.signature(torch.onnx.export).parameters
    if 'dynamic_shapes' not in known or (opset or 18) < 18:
        # The newer exporter cannot write older opsets: it would only log
        # that the file has another one than was asked for.
        options |= dict(
            dynamic_axes=dict(images={0: 'batch'}, logits={0: 'batch'}))
        if 'dynamo' in known:
            options |= dict(dynamo=False)
    else:
        # external_data: the weights go into the same file.
        options |= dict(
            dynamo=True,
            dynamic_shapes=_any_batch(),
            external_data=False,
            verbose=False)
    with _quiet_tracing():
        torch.onnx.export(student, (images, ), str(path), **options)
    found = onnx.load(str(path)).opset_import[0].version
    if opset not in (None, found):
        raise DeploymentError(f'torch {torch.__version__} writes this student '
                              f'in opset {found}, not {opset}')


def _write_torch_export(student: nn.Module, images: Tensor, path: Path,
                        opset: int | None) -> None:
    program = torch.export.export(
        student, (images, ), dynamic_shapes=_any_batch())
    torch.export.save(program, str(path))


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Without warnings about constants, which the comparison answers."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        # TorchScript was asked for.
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter('ignore', category)
        yield


def _any_batch() -> dict[str, Any]:
    return dict(images={0: torch.export.Dim('batch')})


def _write_torchscript(student: nn.Module, images: Tensor, path: Path,
                       opset: int | None) -> None:
    with _quiet_tracing():
        torch.jit.trace(student, images).save(str(path))


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(
        session.run(['logits'], dict(images=images.numpy()))[0])


def _read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(str(path)).module()


def _read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    with _quiet_tracing():
        return torch.jit.load(str(path))


_WRITERS = {
    'onnx': _write_onnx,
    'torch_export': _write_torch_export,
    'torchscript': _write_torchscript,
}
_READERS = {
    'onnx': _read_onnx,
    'torch_export': _read_torch_export,
    'torchscript': _read_torchscript,
}
