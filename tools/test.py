"""Test a student: alone, or taken out of a distiller's checkpoint."""
from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path

import mmengine
from command_line import (
    add_common_arguments,
    fail,
    leave_group,
    one_line_errors,
    prepare_devices,
    read_config,
    set_dataloader_defaults,
)
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from wsld_plugin.checkpoints import (
    load_weights,
    read_checkpoint,
    student_model,
    student_weights,
    write_atomically,
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, of a distillation or of a classifier')
    parser.add_argument(
        'checkpoint', help='checkpoint, of a distiller or of a classifier')
    parser.add_argument('--out', help='file for the predictions or metrics')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what to write to --out; the predictions by default')
    parser.add_argument(
        '--amp', action='store_true', help='test in mixed precision')
    parser.add_argument(
        '--show-dir', help='folder for the images with their predictions')
    parser.add_argument(
        '--show', action='store_true', help='show the images in a window')
    parser.add_argument(
        '--interval', type=int, default=1, help='of the images shown')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='for which an image is shown, in seconds')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="average over the config's augmentations, or over flips")
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out')
    if args.out and args.out_item != 'metrics' and not args.out.endswith(
        ('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: predictions go to a .pkl file')
    return args


def test_config(args: argparse.Namespace) -> Config:
    """Config of the test that the command line asks for."""
    cfg = read_config(args)
    # The teacher plays no part, and need not be downloaded.
    cfg.model = student_model(cfg.model)
    cfg.resume = False
    cfg.load_from = None
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        if 'visualization' not in cfg.get('default_hooks', {}):
            fail('--show and --show-dir need default_hooks.visualization='
                 'dict(type="VisualizationHook")')
        cfg.default_hooks.visualization.update(
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval)
    if args.tta:
        use_test_time_augmentation(cfg)
    set_dataloader_defaults(
        cfg.get('test_dataloader'),
        persistent_workers=False,
        pin_memory=not args.no_pin_memory)
    return cfg


def use_test_time_augmentation(cfg: Config) -> None:
    """Test with the config's augmentations, by default with flips."""
    model = cfg.get('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
    dataset = cfg.test_dataloader.dataset
    if 'tta_pipeline' in cfg:
        pipeline = cfg.tta_pipeline
    else:
        *head, pack = deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        pipeline = [
            *head,
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    dataset.pipeline = pipeline
    cfg.model = ConfigDict(**model, module=cfg.model)


def main() -> None:
    """Test, and print the metrics as the last line."""
    args = parse_args()
    with one_line_errors():
        cfg = test_config(args)
        weights = student_weights(
            read_checkpoint(args.checkpoint)['state_dict'], args.checkpoint)
        prepare_devices(cfg)
        build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
        runner = build(cfg)
        load_weights(runner.model, weights, args.checkpoint)
        if args.out and args.out_item != 'metrics':
            runner.test_evaluator.metrics.append(
                DumpResults(out_file_path=args.out))
        metrics = runner.test()
    if is_main_process():
        if args.out_item == 'metrics':
            # Complete or not at all: experiments.py takes it for the result.
            out = Path(args.out)
            data = mmengine.dump(metrics, file_format=out.suffix[1:])
            write_atomically(
                out, data if isinstance(data, bytes) else data.encode())
        print(json.dumps(metrics))
    leave_group()


if __name__ == '__main__':
    main()
