"""Count the parameters and operations of a config's student and teacher."""
from __future__ import annotations

import argparse
from functools import partial

import torch
from command_line import fail, one_line_errors
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table

from wsld_plugin import compat
from wsld_plugin.checkpoints import student_model


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a distiller or classifier')
    parser.add_argument(
        '--size',
        type=int,
        metavar='PIXELS',
        help='width and height of the picture (default: what the test '
        'pipeline of the config makes)')
    args = parser.parse_args()
    compat.quiet()
    with one_line_errors():
        cfg = Config.fromfile(args.config)
    if 'model' not in cfg:
        fail(f'{args.config} has no model')
    size = picture_size(cfg) if args.size is None else args.size
    if size < 1:
        fail(f'--size is {size}, expected 1 or more')
    networks = {'student': student_model(cfg.model)}
    if 'teacher' in cfg.model:
        networks['teacher'] = student_model(
            dict(architecture=cfg.model.teacher))

    # A line for each kind of operation that it does not count.
    MMLogger.get_current_instance().setLevel('ERROR')
    table = Table(
        title=f'One picture of {size} x {size}',
        caption='Multiply-adds of convolutions and linear layers')
    for column in ('network', 'parameters', 'multiply-adds'):
        table.add_column(
            column, justify='left' if column == 'network' else 'right')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for name, network in networks.items():
            info = complexity(network, size)
            table.add_row(name, f'{info["params"]:,}', f'{info["flops"]:,}')
    Console().print(table)


def complexity(network: dict, size: int) -> dict:
    """What mmengine counts in a network, up to its logits."""
    model = MODELS.build(network).eval()
    model.forward = partial(model.forward, mode='tensor')
    return get_model_complexity_info(
        model,
        inputs=(torch.zeros(1, 3, size, size), ),
        show_table=False,
        show_arch=False)


def picture_size(cfg: Config) -> int:
    """Pixels of a side after the last step of the test that sets them."""
    sizes = [
        step[key] for step in cfg.test_dataloader.dataset.pipeline
        for key in ('scale', 'crop_size') if isinstance(step.get(key), int)
    ] if 'test_dataloader' in cfg else []
    if not sizes:
        fail('cannot tell the size of a picture from the test pipeline: use '
             '--size')
    return sizes[-1]


if __name__ == '__main__':
    main()
