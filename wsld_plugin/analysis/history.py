"""What mmengine logged of a training."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config


class History(NamedTuple):
    """The records of one training, by epoch (by iteration without epochs).

    Attributes:
        steps: The last training record of each epoch.
        validations: Metrics of each validation.
    """

    steps: dict[int, dict[str, Any]]
    validations: dict[int, dict[str, Any]]

    def validation(self, metric: str) -> dict[int, float]:
        """A metric by epoch, where it was measured."""
        return {
            epoch: record[metric]
            for epoch, record in self.validations.items() if metric in record
        }

    def cross_entropies(self) -> dict[int, float]:
        """Loss on the labels alone at the end of an epoch in nats."""
        return {
            # The distilled student's own loss has a prefix.
            epoch: record.get('student.loss', record['loss'])
            for epoch, record in self.steps.items() if 'loss' in record
        }


def read_history(work_dir: Path) -> History:
    """Read the scalars of a work dir, written or being written.

    Args:
        work_dir: Folder that was given to the training. Of several attempts
            in it, a resumed one goes on where it began, and one that began
            anew replaces the earlier ones.

    Returns:
        Empty if nothing was logged.
    """
    history = History({}, {})
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        attempt = _attempt(path)
        first = min((*attempt.steps, *attempt.validations), default=None)
        for known, new in zip(history, attempt):
            for epoch in [
                    epoch for epoch in known
                    if first is not None and epoch >= first
            ]:
                del known[epoch]
            known.update(new)
    return history


def read_config(work_dir: Path) -> Config | None:
    """The config that the latest attempt in a work dir ran with, if kept."""
    paths = sorted(work_dir.glob('*/vis_data/config.py'))
    if not paths:
        return None
    return Config.fromfile(paths[-1], import_custom_modules=False)


def _attempt(path: Path) -> History:
    attempt = History({}, {})
    for line in path.read_text().splitlines(keepends=True):
        # The last line may be still being written.
        if not line.endswith('\n'):
            continue
        record = json.loads(line)
        if 'iter' in record:
            epoch = record.get('epoch', record['iter'])
            attempt.steps[epoch] = record
        elif 'step' in record and not any(
                key.startswith('teacher/') for key in record):
            attempt.validations[record['step']] = record
    return attempt
