"""What networks predict on a split, by the config's own pipeline."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoints.loading import load_strictly, load_weights, strip_prefix
from ..checkpoints.student import student_model, student_weights
from .errors import AnalysisError
from .pixels import grid_pixels, is_dense


def evaluation_loader(cfg: Config, split: str) -> DataLoader:
    """Loader of a split, in order, as the config's validation reads it.

    Args:
        cfg: Config of a training.
        split: ``'train'``, ``'val'`` or ``'test'``; all go through the
            pipeline of ``val``, without augmentation.

    Raises:
        AnalysisError: If ``split`` is none of these, the config has no such
            loader or none for ``val``, or the data are empty or wrong.
    """
    if split not in ('train', 'val', 'test'):
        raise AnalysisError(
            f'split must be train, val or test, got {split!r}')
    for name in {'val', split}:
        if not cfg.get(f'{name}_dataloader'):
            raise AnalysisError(f'the config has no {name}_dataloader')
    loader = deepcopy(cfg.val_dataloader)
    pipeline = next(_leaves(loader.dataset)).get('pipeline', [])
    loader.dataset = deepcopy(cfg[f'{split}_dataloader'].dataset)
    if loader.dataset.get('type') == 'SeededViews':
        loader.dataset = loader.dataset.dataset  # each sample once
    for leaf in _leaves(loader.dataset):
        leaf.pipeline = deepcopy(pipeline)
    loader.pop('batch_sampler', None)
    loader.update(
        # In order, and all of it whatever the number of processes.
        sampler=None,
        drop_last=False,
        persistent_workers=False)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            return Runner.build_dataloader(loader)
        except ValueError as error:  # mmengine's of an empty one, too
            raise AnalysisError(
                f'the split {split} cannot be read: {error}') from error


def student_network(cfg: Config, checkpoint: dict[str, Any],
                    source: str) -> nn.Module:
    """The student of a config with a checkpoint's weights, to be evaluated.

    Args:
        cfg: Config of a distillation or of a classifier.
        checkpoint: As :func:`wsld_plugin.checkpoints.read_checkpoint` gives
            it, of a distiller or of the student.
        source: Where it came from, for the error message.

    Raises:
        CheckpointMismatchError: If the weights do not fit.
    """
    model = dict(cfg.model)
    if cfg.get('data_preprocessor'):
        # As mmengine's Runner does.
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    network = _build(cfg, student_model(model))
    load_weights(network, student_weights(checkpoint['state_dict'], source),
                 source)
    return network


def teacher_network(cfg: Config, checkpoint: dict[str, Any],
                    source: str) -> nn.Module:
    """The frozen teacher of a distillation's config, to be evaluated.

    Its weights are those of ``teacher_ckpt``, of the model or of its
    ``CachedTeacher``, or the checkpoint's where there is none. Its
    normalisation uses the statistics of its own training, whatever
    ``teacher_norm_eval`` says, so that a prediction does not depend on what
    else is in the batch.

    Args:
        cfg: Config of a distillation.
        checkpoint: Of the distillation.
        source: As for :func:`student_network`.

    Raises:
        CheckpointMismatchError: If the weights do not fit.
        AnalysisError: If the config has no teacher that stays as it is.
    """
    if 'teacher' not in cfg.model:
        raise AnalysisError('the config has no model.teacher')
    if cfg.model.get('teacher_trainable'):
        raise AnalysisError('model.teacher_trainable is True: a teacher that '
                            'learns is another one at each checkpoint')
    holder, name = cfg.model, 'model.teacher_ckpt'
    if 'teacher' in cfg.model.teacher:  # of a CachedTeacher
        holder, name = cfg.model.teacher, 'model.teacher.teacher_ckpt'
    network = _build(cfg, student_model(dict(architecture=holder.teacher)))
    if holder.get('teacher_ckpt'):
        load_strictly(network, holder.teacher_ckpt, name)
        return network
    weights = strip_prefix(checkpoint['state_dict'], 'teacher.')
    if not weights:
        raise AnalysisError(f'{name} is not set, and there is no teacher in '
                            f'{source}')
    load_weights(network, weights, source)
    return network


@torch.no_grad()
def logits(networks: Sequence[nn.Module],
           batches: Iterable[Any]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Run networks over batches.

    Args:
        networks: All see the pictures that the first one's preprocessor
            makes, as a teacher sees the student's.
        batches: As :func:`evaluation_loader` gives them.

    Yields:
        The logits ``(N, C)`` of each network and the labels ``(N,)``, on
        the CPU; of mmseg's networks those of :func:`grid_pixels`.

    Raises:
        AnalysisError: If a network gives no logits of this shape.
    """
    for batch in batches:
        preprocess: Any = networks[0].data_preprocessor
        data = preprocess(batch, False)
        outputs = [network(data['inputs'], mode='tensor')
                   for network in networks]
        if all(map(is_dense, networks)):
            yield grid_pixels(networks, outputs, data['data_samples'])
            continue
        for output in outputs:
            if not isinstance(output, Tensor) or output.dim() != 2:
                raise AnalysisError(
                    'the networks must give logits of shape (N, C), got '
                    f'{tuple(getattr(output, "shape", [type(output)]))}')
        labels = torch.cat(
            [sample.gt_label.cpu() for sample in data['data_samples']])
        yield [output.cpu() for output in outputs], labels


def _build(cfg: Config, model: dict[str, Any]) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        network = MODELS.build(model)
    return network.to(get_device()).eval()


def _leaves(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Data sets that are inside of wrappers, or the data set itself."""
    parts = [dataset[name] for name in ('dataset', 'labelled', 'unlabelled')
             if name in dataset] + [*dataset.get('datasets', ())]
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield dataset
