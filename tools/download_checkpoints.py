"""Download checkpoints by model name or URL, and verify them."""
from __future__ import annotations

import argparse
import sys

from _start import start


def main() -> None:
    """Download, and print the paths of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('checkpoint', nargs='+',
        help='name of a model (resnet34_8xb32_in1k), torchvision://NAME, '
        'or URL')
    add('--out', metavar='FOLDER',
        help='where to put the files; by default the cache that configs '
        'with URLs use, $MMENGINE_HOME/checkpoints or '
        '$TORCH_HOME/hub/checkpoints')
    add('--mirror', metavar='BASE',
        help='URL that stands in for the scheme and host of the files')
    add('--offline', action='store_true',
        help='download nothing, say which file goes where')
    args = parser.parse_args()
    from wsld_plugin.checkpoints import CheckpointError, download_checkpoint
    from wsld_plugin.command_line import one_line_errors
    failed = False
    with one_line_errors():
        for checkpoint in args.checkpoint:
            try:
                print(download_checkpoint(
                    checkpoint, args.out, mirror=args.mirror,
                    offline=args.offline))
            except CheckpointError as error:
                # The others may be had.
                failed = True
                print(f'download_checkpoints.py: {error}', file=sys.stderr)
    if failed:
        sys.exit(2)


if __name__ == '__main__':
    start(main)
