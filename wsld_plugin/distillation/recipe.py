"""The configs of one call, complete and as a person would write them."""
from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets import PictureFolder
from ..models import NetworkError, Source, classifier, find_network
from .schedule import network_traits, schedule

_BASES = Path(__file__).resolve().parents[1] / '.mim' / 'configs' / '_base_'
# Below this, in pixels, a picture is cropped as CIFAR's are: all of it, moved
# by up to an eighth. Above, a random part is cut out and scaled.
_LARGE = 96


@dataclass(frozen=True)
class Recipe:
    """All choices of a call that are settled.

    Attributes:
        folder: The pictures.
        lists: Folder of ``train.txt``, ``val.txt`` and ``test.txt``.
        student: Its spec.
        epochs: Of a student's training.
        teacher_epochs: Of a teacher's, all phases together.
        batch_size: Pictures of an iteration, in each process.
        size: Height and width of what the student gets, in pixels.
        flip: Whether a mirrored picture is of the same class.
        seed: Of everything random.
        dtype: ``'float32'``, ``'bfloat16'`` or ``'float16'``.
        launcher: As Runner takes it.
        processes: How many train together.
        workers: Processes that load pictures for each of them. As each has
            its own random numbers, their number is part of the recipe.
    """

    folder: PictureFolder
    lists: Path
    student: str
    epochs: int
    teacher_epochs: int
    batch_size: int
    size: int
    flip: bool = True
    seed: int = 0
    dtype: str = 'float32'
    launcher: str = 'none'
    processes: int = 1
    workers: int = 2


def default_size(folder: PictureFolder, student: str) -> int:
    """The multiple of 32 next to the pictures' size, up to 224.

    Or, if the student takes no such pictures, those it was made for; a
    NetworkError if it takes neither.
    """
    size = min(max((folder.size + 16) // 32 * 32, 32), 224)
    network = classifier(student, 2, folder.mean, folder.std)
    try:
        network_traits(network, size)
    except NetworkError:
        size = find_network(student, 'student').size or 224
        network_traits(network, size)
    return size


def default_batch_size(folder: PictureFolder, processes: int = 1) -> int:
    """64, less where an epoch would have fewer than ten iterations."""
    most = len(folder.splits['train']) // (10 * processes)
    return next((size for size in (64, 32, 16) if size <= most), 8)


def default_workers(processes: int = 1) -> int:
    """A core each, from 2 to 8."""
    # Which macOS lacks.
    allowed = getattr(os, 'sched_getaffinity', None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return min(max(cores // processes, 2), 8)


def caching_pays(recipe: Recipe, epochs: int, place: Path) -> bool:
    """Whether to compute the teacher's answers once and look them up then.

    Args:
        recipe: Each of its ``epochs`` needs answers of its own.
        epochs: Of all trainings that ask the teacher, trials among them.
        place: A folder on the disk that would take the answers.
    """
    # Checks, then logits in float16, as caching.record has them.
    row = 20 + 2 * min(len(recipe.folder.classes), 256)
    size = row * recipe.epochs * len(recipe.folder.splits['train'])
    return (epochs >= 1.5 * recipe.epochs
            and 2 * size < shutil.disk_usage(place).free)


def student_config(recipe: Recipe) -> Config:
    """Config of the student's training without a teacher."""
    model, phase = _student(recipe)
    return _config(recipe, model, model, phase, recipe.epochs)


def teacher_config(recipe: Recipe, source: Source, phase: str,
                   start: Path | None = None) -> Config:
    """Config of the training of one teacher on the folder.

    The phase is ``'scratch'``; or ``'head'``, the last layer, for a fifth of
    ``teacher_epochs``, and then ``'all'``, from ``start``, the checkpoint of
    the phase before.
    """
    head = max(1, recipe.teacher_epochs // 5)
    rest = max(1, recipe.teacher_epochs - head)
    lengths = dict(scratch=recipe.teacher_epochs, head=head, all=rest)
    model = teacher_model(recipe, [source])
    model['data_preprocessor'] = dict(
        type='ClsDataPreprocessor',
        num_classes=len(recipe.folder.classes),
        **model['inputs'])
    if phase != 'scratch' and start is None:
        model['members'][0]['weights'] = source.weights
    if phase == 'head':
        model['trainable'] = 'head'
    cfg = _config(recipe, model, model, phase, lengths[phase])
    cfg.load_from = str(start.absolute()) if start else None
    return cfg


def teacher_model(recipe: Recipe,
                  sources: Sequence[Source],
                  combine: str = 'probabilities',
                  weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Config of the ``Teacher`` that a student learns from.

    Args:
        recipe: Of the call.
        sources: Its members. Their weights are not in it.
        combine: What is averaged, ``'probabilities'`` or ``'logits'``.
        weights: Of the members in that; by default equal.
    """
    inputs = dict(
        mean=list(recipe.folder.mean),
        std=list(recipe.folder.std),
        to_rgb=True)
    model = dict(
        type='Teacher',
        members=[_member(recipe, source, inputs) for source in sources],
        inputs=inputs,
        combine=combine)
    return model if weights is None else dict(model, weights=list(weights))


def _member(recipe: Recipe, source: Source,
            inputs: Mapping[str, Any]) -> dict[str, Any]:
    member: dict[str, Any] = dict(
        network=source.network,
        num_classes=len(recipe.folder.classes),
        size=source.size,
        mean=source.mean and list(source.mean),
        std=source.std and list(source.std))
    if source.imports:
        member['imports'] = list(source.imports)
    if source.weights is not None:
        return member
    # Trained here, on the student's pictures if it takes them.
    member.update(size=None, mean=None, std=None)
    try:
        network_traits(
            dict(type='Teacher', members=[member], inputs=inputs),
            recipe.size)
    except NetworkError:
        member['size'] = source.size or 224
    return member


def distillation_config(recipe: Recipe,
                        teacher: Mapping[str, Any],
                        teacher_ckpt: Path,
                        tau: float,
                        alpha: float,
                        epochs: int | None = None,
                        cache: Path | None = None) -> Config:
    """Config of the student's training with a teacher.

    The teacher's BatchNorm is in evaluation mode (``teacher_norm_eval``): so
    its accuracy was measured, and so its answer to a picture does not depend
    on the batch and can be kept.

    Args:
        recipe: Of the call.
        teacher: Of :func:`teacher_model`.
        teacher_ckpt: Its weights.
        tau: Temperature.
        alpha: Weight of the soft labels.
        epochs: Of a trial, a whole training in less time; by default and at
            most those of the recipe.
        cache: Folder of the teacher's answers, the same for all trials.
    """
    (student, phase), ckpt = _student(recipe), str(teacher_ckpt.absolute())
    networks = [student] if cache else [student, teacher]
    # Whatever a head is made of, its loss gets logits and labels.
    loss = 'head.loss_module' if 'head' in student else 'loss_module'
    model = dict(
        architecture=student,
        teacher=teacher,
        teacher_ckpt=ckpt,
        teacher_norm_eval=True,
        distiller=dict(
            student_recorders=dict(
                _delete_=True, loss=dict(type='ModuleInputs', source=loss)),
            distill_losses=dict(loss_wsld=dict(tau=tau, loss_weight=alpha)),
            loss_forward_mappings=dict(
                loss_wsld=dict(
                    student=dict(recorder='loss', data_idx=0),
                    gt_labels=dict(recorder='loss', data_idx=1)))))
    if cache is not None:
        model['teacher'] = dict(
            type='CachedTeacher',
            cache=str(cache.absolute()),
            teacher=teacher,
            teacher_ckpt=ckpt)
        model['teacher_ckpt'] = None
    cfg = _config(recipe, model, student, phase, epochs or recipe.epochs,
                  'distill/wsld')
    # It was validated by its own training.
    del cfg.default_hooks.validate_teacher
    cfg.default_hooks.fast_step.channels_last = all(
        network_traits(one, recipe.size).channels_last for one in networks)
    if cache is not None:
        loader = cfg.train_dataloader
        loader.dataset = dict(
            type='SeededViews',
            dataset=loader.dataset,
            views=recipe.epochs,
            seed=recipe.seed)
        loader.sampler.type = 'ViewSampler'
    return cfg


def _student(recipe: Recipe) -> tuple[dict[str, Any], str]:
    """The student, and from where it learns."""
    folder = recipe.folder
    model = classifier(recipe.student, len(folder.classes), folder.mean,
                       folder.std)
    # Some say by init_cfg how random weights are drawn.
    starts = find_network(recipe.student, 'student').weights is None
    return model, 'scratch' if starts else 'all'


def _config(recipe: Recipe,
            model: Mapping[str, Any],
            network: Mapping[str, Any],
            phase: str,
            epochs: int,
            base: str = 'runtime') -> Config:
    """What all trainings have; ``network`` is the one that learns."""
    each = -(-len(recipe.folder.splits['train']) // recipe.processes)
    steps, rest = divmod(each, recipe.batch_size)
    # A few pictures say little, and BatchNorm learns nothing of one.
    drop = steps > 0 and rest < max(2, recipe.batch_size / 2)
    traits = network_traits(network, recipe.size)
    settings = schedule(traits.adam, phase, epochs, steps + (not drop),
                        recipe.batch_size * recipe.processes, recipe.dtype)
    cfg = Config.fromfile(_BASES / f'{base}.py')
    cfg.custom_imports.imports += find_network(recipe.student,
                                               'student').imports
    cfg.merge_from_dict(
        dict(
            model=model,
            **_data(recipe, drop),
            **settings,
            val_cfg=dict(),
            test_cfg=dict(),
            # The last epoch's weights are the result, whatever val says.
            default_hooks=dict(
                checkpoint=dict(
                    interval=settings['train_cfg']['val_interval'],
                    max_keep_ckpts=1,
                    save_best=None),
                norm_momentum=dict(type='NormMomentumHook'),
                fast_step=dict(
                    type='FastStepHook', channels_last=traits.channels_last)),
            launcher=recipe.launcher,
            randomness=dict(seed=recipe.seed)))
    # Without the names of the files that it was made of.
    return Config(cfg.to_dict())


def _data(recipe: Recipe, drop_last: bool) -> dict[str, Any]:
    """Loaders and evaluators of all splits."""
    size, many = recipe.size, len(recipe.folder.classes) > 5
    resize = dict(type='ResizeEdge', edge='short', backend='pillow')
    learn = [
        dict(resize, scale=size),
        dict(type='RandomCrop', crop_size=size, padding=size // 8)
    ] if size < _LARGE else [
        dict(
            type='RandomResizedCrop',
            scale=size,
            crop_ratio_range=[0.25, 1.0],
            backend='pillow')
    ]
    if recipe.flip:
        learn += [dict(type='RandomFlip', prob=0.5, direction='horizontal')]
    judge = [
        dict(resize, scale=size if size < _LARGE else size * 8 // 7),
        dict(type='CenterCrop', crop_size=size)
    ]
    found: dict[str, Any] = {}
    for split in ('train', 'val', 'test'):
        learns = split == 'train'
        loader = found[f'{split}_dataloader'] = dict(
            batch_size=recipe.batch_size if learns else max(
                64, recipe.batch_size),
            num_workers=recipe.workers,
            # Those that live on have random numbers that no resumed training
            # could restore, and each of them takes 5 s to end with its
            # training: only a garbage collection frees that, which closes
            # their queues before they are told.
            persistent_workers=False,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=learns),
            dataset=dict(
                type='CustomDataset',
                data_prefix=str(recipe.folder.root.absolute()),
                ann_file=str((recipe.lists / f'{split}.txt').absolute()),
                metainfo=dict(classes=list(recipe.folder.classes)),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    *(learn if learns else judge),
                    dict(type='PackInputs')
                ]))
        if learns:
            loader['drop_last'] = drop_last
        else:
            found[f'{split}_evaluator'] = dict(
                type='Accuracy', topk=[1, 5] if many else [1])
    return found
