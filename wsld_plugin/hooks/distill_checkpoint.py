"""Checkpoints of a distillation that are small and never broken."""
from __future__ import annotations

import io
import os.path as osp
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu

from ..checkpoints.atomic import remove_parts, write_atomically
from ..checkpoints.loading import CheckpointMismatchError, expect_training
from ..checkpoints.student import student_checkpoint
from ..checkpoints.teacher import FrozenTeacher, has_weights, keep_teacher
from .teachers import distillers


@HOOKS.register_module()
class DistillCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for a student and its frozen teacher.

    The same arguments and files, but:

    - A frozen teacher's weights that are still those of
      ``model.teacher_ckpt`` are left out and are read from there on resume.
      What changed, as the running statistics of a teacher with
      ``teacher_norm_eval=False``, is kept. A checkpoint that was made with
      another teacher is not resumed; as ``load_from`` it gives its student
      to a training with the config's teacher. A teacher without
      ``teacher_ckpt``, one that trains, and the teacher beside an
      ``EMAHook`` with ``strict_load=True`` are saved whole.
    - A resumed run begins with the validation of its checkpoint, which was
      saved before that and knows nothing of it.
    - The student, its running average if there is an ``EMAHook``, stands
      beside each checkpoint as ``*_student.pth``, as mmpretrain loads it.
    - A local file takes its name when it is complete and on the disk, and
      older files are removed after that: a kill or a full disk costs no
      earlier checkpoint, and there must be room for one more than are kept.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]
    file_client_args: dict[str, Any] | None
    last_ckpt: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: FrozenTeacher | None = None
        self._teacher_is_known = False
        self._student: dict[str, Any] | None = None
        self._step: int | None = None
        self._metrics: dict[str, float] = {}

    def before_run(self, runner: Runner) -> None:
        """Look at the teacher before all models are initialised."""
        distiller = distillers(runner.model).get('teacher')
        self._teacher_is_known = (
            distiller is not None and has_weights(distiller.teacher))

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder and read the weights that will be left out."""
        backend = get_file_backend(
            self.out_dir or runner.work_dir, backend_args=self.backend_args)
        atomic = self.file_client_args is None and type(
            backend) is LocalBackend
        if atomic:
            self.backend_args = dict(backend='wsld_plugin.atomic')
        kept = list(runner.message_hub.runtime_info.get('keep_ckpt_ids', []))
        super().before_train(runner)
        self.file_backend = _Backend(self.file_backend)
        if is_main_process():
            # Students of the checkpoints that went just now.
            for step in {*kept} - {*getattr(self, 'keep_ckpt_ids', kept)}:
                self.file_backend.remove(self._path(step))
            self.file_backend.remove_now()
            if atomic:
                remove_parts(Path(self.out_dir))
            # A strict EMAHook demands the whole model before it can be
            # completed.
            if not any(
                    getattr(one, 'strict_load', False)
                    for one in runner.hooks):
                self._frozen = _frozen_teacher(runner)
        self._make_up_validation(runner)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Take the teacher out and the student along."""
        if distillers(runner.model) and any(
                key.startswith('architecture.')
                for key in checkpoint['state_dict']):
            self._student = student_checkpoint(checkpoint, runner.work_dir)
            # EMAHook's average is where the model is.
            student = weights_to_cpu(self._student['state_dict'])
            self._student['state_dict'] = student
            self._student['meta']['metrics'] = self._metrics
        if self._frozen is not None:
            self._frozen.leave_out(checkpoint)

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: dict[str, Any]) -> None:
        """Complete the teacher.

        Raises:
            CheckpointMismatchError: If the teacher's weights are in no file,
                or, on resume, another's, or if the file holds a student.
        """
        distiller = distillers(runner.model).get('teacher')
        weights = checkpoint.get('state_dict', checkpoint)
        if runner._resume or distiller is not None:
            expect_training(checkpoint, runner._load_from or runner.work_dir,
                            None if runner._resume else distiller)
        if distiller is None:
            return
        training = isinstance(getattr(runner, '_train_loop', None), BaseLoop)
        if training and 'teacher_sha256' in checkpoint.get('meta', {}):
            frozen = _frozen_teacher(runner)
            if frozen and (runner._resume or frozen.is_of(checkpoint)):
                frozen.put_back(checkpoint)
            elif runner._resume or not self._teacher_is_known:
                raise CheckpointMismatchError(
                    "the checkpoint lacks the teacher's weights: set "
                    'model.teacher_ckpt to the file that it was trained with')
        if (training and self._teacher_is_known
                and not distiller.teacher_trainable
                and keep_teacher(distiller.teacher, weights)):
            # A teacher without weights is a cache, which knows its own.
            ours = _teacher_ckpt(runner) or "the config's teacher"
            if runner._resume and [*distiller.teacher.parameters()]:
                raise CheckpointMismatchError(
                    f'{runner._load_from or runner.work_dir} was made with '
                    f'another teacher than {ours}, and is not resumed')
            runner.logger.warning(
                '%s has another teacher, which is left there: %s teaches.',
                runner._load_from or runner.work_dir, ours)
        # Whoever tests needs no teacher, but mmengine would miss it.
        for key, value in distiller.teacher.state_dict().items():
            weights.setdefault(f'teacher.{key}', value)

    def _make_up_validation(self, runner: Runner) -> None:
        """Validate a resumed run, as the one that was cut did or would have.

        What depends on it, as the best score or a stop, is not in the file.
        """
        if not runner._resume:
            return
        loop: Any = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        now, end = (runner.epoch, runner.max_epochs) if by_epoch else (
            runner.iter, runner.max_iters)
        loop._decide_current_val_interval()
        if (runner.val_loop is None or self.by_epoch != by_epoch
                or now < max(1, loop.val_begin)
                or (now % loop.val_interval and now != end)):
            return
        name = self.filename_tmpl.format(now)
        # The best is saved once more, after its validation.
        if any(str(path).endswith(f'_{name}') for path in self._best()):
            return
        path = self._path(now)
        if self.file_backend.isfile(path):
            self._step, self.last_ckpt = now, path
        student = _student_path(path)
        if is_main_process() and self.file_backend.isfile(student):
            self._student = torch.load(
                io.BytesIO(self.file_backend.get(student)))
        runner.val_loop.run()

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Save the best, and tell the student's file how good it is."""
        if not hasattr(self, 'file_backend'):
            return  # a validation without a training has nothing to save
        self._metrics = {
            key: float(value)
            for key, value in (metrics or {}).items()
            if isinstance(value, Real)
        }
        super().after_val_epoch(runner, metrics or {})
        now = runner.epoch if self.by_epoch else runner.iter
        # Written before it was validated, unless it is the best one.
        if (self._student is not None and self._step == now
                and self._student['meta']['metrics'] != self._metrics):
            self._student['meta']['metrics'] = self._metrics
            self._write_student(self.last_ckpt)
        self._metrics = {}

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict[str, Any]) -> None:
        """As mmengine's, in an order that always leaves a checkpoint."""
        if self.max_keep_ckpts > 0 and [step] != [*self.keep_ckpt_ids][-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(
                    self._path(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids',
                                           list(self.keep_ckpt_ids))
        self._step = step
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            self._write_student(self.last_ckpt)
            write_atomically(
                Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            self.file_backend.remove_now()

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, float]) -> None:
        """As mmengine's, with the student."""
        before = self._best()
        # The last best, until the new one's student is there, too.
        self.file_backend.holds = True
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.holds = False
        if is_main_process():
            for path in self._best() - before:
                self._write_student(path)
            self.file_backend.remove_now()

    def _best(self) -> set[str | None]:
        paths = getattr(self, 'best_ckpt_path_dict', {}).values()
        return {*paths, getattr(self, 'best_ckpt_path', None)}

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir,
                                           self.filename_tmpl.format(step))

    def _write_student(self, checkpoint: str | None) -> None:
        """Write the student that was saved last beside its checkpoint."""
        if self._student is None or checkpoint is None:
            return
        self._student['meta']['source'] = osp.basename(checkpoint)
        buffer = io.BytesIO()
        torch.save(self._student, buffer)
        self.file_backend.put(buffer.getvalue(), _student_path(checkpoint))


class _Backend:
    """A backend that removes later, and a student with its checkpoint."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._outdated: list[str] = []
        self.holds = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, checkpoint: str) -> None:
        self._outdated.append(checkpoint)

    def remove_now(self) -> None:
        while self._outdated and not self.holds:
            checkpoint = self._outdated.pop()
            for path in (checkpoint, _student_path(checkpoint)):
                if self._backend.isfile(path):
                    self._backend.remove(path)
                elif self._backend.isdir(path):  # DeepSpeed's
                    self._backend.rmtree(path)


def _student_path(checkpoint: str) -> str:
    root, extension = osp.splitext(checkpoint)
    return f'{root}_student{extension}'


def _frozen_teacher(runner: Runner) -> FrozenTeacher | None:
    """The teacher's weights, if they can be read from a file again."""
    distiller = distillers(runner.model).get('teacher')
    path = _teacher_ckpt(runner)
    if distiller is None or distiller.teacher_trainable or not path:
        return None
    return FrozenTeacher(distiller.teacher, path)


def _teacher_ckpt(runner: Runner) -> str | None:
    cfg = runner.cfg.get('model')
    return cfg.get('teacher_ckpt') if isinstance(cfg, dict) else None
