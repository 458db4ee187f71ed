"""Compute a CachedTeacher's answers to all views of its training set.

CONFIG is the one to train with: its model has a CachedTeacher, its training
set is a SeededViews. Rows that are there are kept; damaged ones are mended.
"""
from __future__ import annotations

import argparse

from _start import add_run_arguments, start


def main() -> None:
    """Make or finish the cache, and print its folder as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('--top-k', type=int, metavar='K',
        help='classes to keep beside the true one, the rest as if equal; by '
        'default all, or 64 where there are more than 256')
    add('--verify', type=int, metavar='N',
        help='then compute N random rows again and compare')
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.verify is not None and args.verify < 1:
        parser.error(f'--verify must be at least 1, got {args.verify}')
    from mmengine.dist import is_main_process

    from wsld_plugin import command_line
    from wsld_plugin.caching import build_cache, verify_cache
    with command_line.one_line_errors():
        cfg = command_line.read_run_config(args, 'train')
        # Their shares end hours apart.
        cfg.merge_from_dict({'env_cfg.dist_cfg': {
            'timeout': 6 * 3600, **cfg.get('env_cfg', {}).get('dist_cfg', {})
        }})
        command_line.prepare_devices(cfg)
        cache = build_cache(cfg, args.top_k)
        if is_main_process():
            print(f'{len(cache)} rows of {cache.dtype.itemsize} bytes')
            if args.verify:
                difference = verify_cache(cfg, args.verify)
                print(f'{min(args.verify, len(cache))} rows computed again: '
                      f'largest difference {difference:.2g}')
            print(cache.folder)
    command_line.leave_group()


if __name__ == '__main__':
    start(main)
