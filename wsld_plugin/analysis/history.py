"""What mmengine logged of a training."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config


class History(NamedTuple):
    """The records of one training, by epoch (by iteration without epochs).

    ``steps`` has the last training record of each, ``validations`` metrics.
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
    """Read the scalars of a work dir, written or being written; may be empty.

    Of several attempts in it, a resumed one goes on where it began, and one
    that began anew replaces the earlier ones.
    """
    history = History({}, {})
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        attempt = History({}, {})
        for line in path.read_text().splitlines(keepends=True):
            # The last line may be still being written.
            record = json.loads(line) if line.endswith('\n') else {}
            if 'iter' in record:
                attempt.steps[record.get('epoch', record['iter'])] = record
            elif 'step' in record and not any(
                    key.startswith('teacher/') for key in record):
                attempt.validations[record['step']] = record
        # Not of validations: a resumed one validates again what it resumes.
        first = min(attempt.steps, default=math.inf)
        for known, new in zip(history, attempt):
            for epoch in [one for one in known if one >= first]:
                del known[epoch]
            known.update(new)
    return history


def read_config(work_dir: Path) -> Config:
    """The config of the latest attempt in a work dir; empty if not kept."""
    for path in sorted(work_dir.glob('*/vis_data/config.py'))[-1:]:
        return Config.fromfile(path, import_custom_modules=False)
    return Config()
