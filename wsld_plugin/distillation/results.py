"""What a call leaves: config, student, ONNX, metrics and report."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from .. import analysis, checkpoints
from ..checkpoints import read_checkpoint, write_atomically
from .cost import measure_cost
from .findings import Findings, Judged, metrics
from .recipe import Recipe
from .report import report_page
from .search import Choice
from .trainings import Training


def write_findings(recipe: Recipe, settled: Mapping[str, Any], chosen: Choice,
                   runs: Mapping[str, Training], times: Mapping[str, float],
                   out: Path) -> None:
    """Judge the networks on the test split and write all that is kept.

    Of ``runs``, the students' trainings, the distilled one is the last.
    ``metrics.json`` is written last: with it the call is finished.
    """
    *_, distilled = runs.values()
    files: dict[str, Any] = dict(
        config=out / 'config.py', report=out / 'report.html')
    write_atomically(files['config'], distilled.cfg.pretty_text)
    # Of a call that was killed here.
    for path in out.glob('distilled_*'):
        path.unlink()
    files['student'] = checkpoints.export_student(
        str(distilled.checkpoint), str(out / 'distilled')).path
    files['onnx'] = _onnx(files['student']) if settled['onnx'] else None
    teachers = sorted((out / 'teachers').glob('*'))
    findings = Findings(
        folder=recipe.folder,
        networks=_judge(recipe, settled, runs),
        work_dirs={
            **{f'teacher {path.name}': path for path in teachers},
            **{name: run.work_dir for name, run in runs.items()}
        },
        settings=dict(settled, tau=chosen.tau, alpha=chosen.alpha),
        times=dict(times), trials=chosen.trials, student=files['student'],
        onnx=files['onnx'], config=files['config'])
    found = metrics(findings)
    write_atomically(files['report'], report_page(findings))
    found['files'] = {name: path and path.name
                      for name, path in files.items()}
    write_atomically(out / 'metrics.json', json.dumps(found, indent=1))


def _onnx(student: Path) -> Path | None:
    try:
        return checkpoints.export_onnx(
            str(student), str(student.with_suffix('')),
            with_preprocessing=True).path
    except (checkpoints.OnnxError, RuntimeError) as error:
        # torch's exporter knows not all networks.
        print('No ONNX file:', *str(error).split())
        return None


def _judge(recipe: Recipe, settled: Mapping[str, Any],
           runs: Mapping[str, Training]) -> list[Judged]:
    """What all networks say about the test pictures, the teacher first."""
    networks: dict[str, nn.Module] = {
        name: analysis.student_network(
            run.cfg, read_checkpoint(str(run.checkpoint)),
            str(run.checkpoint)) for name, run in runs.items()
    }
    *_, (student, last) = runs.items()
    # Last: its own preprocessor is not asked.
    networks['teacher'] = analysis.teacher_network(last.cfg, {}, '')
    batches = [found for found, _ in analysis.logits(
        [*networks.values()], analysis.evaluation_loader(last.cfg, 'test'))]
    probabilities = [torch.cat(found).softmax(1) for found in zip(*batches)]
    one = torch.zeros(1, 3, recipe.size, recipe.size, device=get_device())
    what = dict(
        dict.fromkeys(runs, settled['student']),
        teacher=' and '.join(settled['teacher']))
    # The students are one network, whose time is not to differ by chance.
    costs = {name: measure_cost(networks[name], one)
             for name in ('teacher', student)}
    judged = [
        Judged(name, what[name], probs.float(),
               costs.get(name, costs[student]))
        for name, probs in zip(networks, probabilities)
    ]
    return [judged[-1], *judged[:-1]]
