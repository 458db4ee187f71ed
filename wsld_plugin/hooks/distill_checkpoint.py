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
from mmengine.runner import Runner

from ..checkpoints import (
    CheckpointMismatchError,
    FrozenTeacher,
    remove_parts,
    student_checkpoint,
    write_atomically,
)
from .teachers import distillers


@HOOKS.register_module()
class DistillCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for a student and its frozen teacher.

    It takes the same arguments and writes the same files, with these
    differences:

    - A frozen teacher's weights that are still those of
      ``model.teacher_ckpt`` are left out and are read from there on resume.
      What changed, as the running statistics of a teacher with
      ``teacher_norm_eval=False``, is kept. A checkpoint that was made with
      another teacher is refused. A teacher without ``teacher_ckpt``, one
      that trains, and the teacher beside an ``EMAHook`` with
      ``strict_load=True`` are saved whole.
    - The student, the running average of it if there is an ``EMAHook``,
      stands beside each checkpoint as ``*_student.pth``, as mmpretrain loads
      it, and goes when the checkpoint goes.
    - A local file takes its name when it is complete and on the disk, and
      older files are removed after that, so that a kill or a full disk costs
      no earlier checkpoint. There must be room for one checkpoint more than
      are kept.

    A model without a teacher is saved as mmengine does, but for the last.
    """

    backend_args: dict[str, Any] | None
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]
    last_ckpt: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: FrozenTeacher | None = None
        self._student: dict[str, Any] | None = None
        self._step: int | None = None
        self._metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder and read the weights that will be left out."""
        backend = get_file_backend(
            self.out_dir or runner.work_dir, backend_args=self.backend_args)
        atomic = isinstance(backend, LocalBackend)
        if atomic:
            self.backend_args = dict(backend='wsld_plugin.atomic')
        kept = list(runner.message_hub.runtime_info.get('keep_ckpt_ids', []))
        super().before_train(runner)
        if not is_main_process():
            return
        for step in kept:
            path = self._path(step)
            if not self.file_backend.exists(path):
                self._remove(path)
        if atomic:
            remove_parts(Path(self.out_dir))
        # A strict EMAHook demands the whole model before it can be completed.
        if not any(
                getattr(hook, 'strict_load', False) for hook in runner.hooks):
            self._frozen = _frozen_teacher(runner)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Take the teacher out and the student along."""
        if distillers(runner.model) and any(
                key.startswith('architecture.')
                for key in checkpoint['state_dict']):
            self._student = student_checkpoint(checkpoint, runner.work_dir)
            self._student['meta']['metrics'] = self._metrics
        if self._frozen is not None:
            self._frozen.leave_out(checkpoint)

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: dict[str, Any]) -> None:
        """Complete the teacher.

        Raises:
            CheckpointMismatchError: If the checkpoint was made with another
                teacher.
        """
        if ('teacher_sha256' not in checkpoint.get('meta', {})
                or not distillers(runner.model)):
            return
        frozen = _frozen_teacher(runner)
        if frozen is None:
            raise CheckpointMismatchError(
                "the checkpoint lacks the teacher's weights: set "
                'model.teacher_ckpt to the file that it was trained with')
        frozen.put_back(checkpoint)

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Save the best, and tell the student's file how good it is."""
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
        outdated = None
        if self.max_keep_ckpts > 0 and [step] != [*self.keep_ckpt_ids][-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.keep_ckpt_ids.popleft()
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
        if not is_main_process():
            return
        self._write_student(self.last_ckpt)
        write_atomically(
            Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt.encode())
        if outdated is not None:
            self._remove(self._path(outdated))

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, float]) -> None:
        """As mmengine's, but the previous best goes after the new one came."""
        if not self.save_best:
            return
        several = len(self.key_indicators) > 1
        before: dict[str, str | None] = (
            self.best_ckpt_path_dict if several else
            dict.fromkeys(self.key_indicators, self.best_ckpt_path))
        # mmengine removes what it knows of before it writes.
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        else:
            self.best_ckpt_path = None
        super()._save_best_checkpoint(runner, metrics)
        after: dict[str, str | None] = (
            self.best_ckpt_path_dict if several else
            dict.fromkeys(before, self.best_ckpt_path))
        for key, path in before.items():
            best = after[key]
            if best is None:
                after[key] = path
            elif is_main_process():
                self._write_student(best)
                if path is not None and path != best:
                    self._remove(path)
        if not several:
            self.best_ckpt_path, = after.values()

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

    def _remove(self, checkpoint: str) -> None:
        """Remove a checkpoint and its student, as far as they are there."""
        for path in (checkpoint, _student_path(checkpoint)):
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)


def _student_path(checkpoint: str) -> str:
    root, extension = osp.splitext(checkpoint)
    return f'{root}_student{extension}'


def _frozen_teacher(runner: Runner) -> FrozenTeacher | None:
    """The teacher's weights, if they can be read from a file again."""
    distiller = distillers(runner.model).get('teacher')
    cfg = runner.cfg.get('model')
    if (distiller is None or distiller.teacher_trainable
            or not isinstance(cfg, dict) or not cfg.get('teacher_ckpt')):
        return None
    return FrozenTeacher(distiller.teacher, cfg['teacher_ckpt'])
