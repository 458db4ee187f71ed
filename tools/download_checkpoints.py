"""Download checkpoints by model name or URL, and verify them."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wsld_plugin import compat
from wsld_plugin.checkpoints import DownloadError, download_checkpoint


def main() -> None:
    """Download, and print the paths of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checkpoint',
        nargs='+',
        help='name of a model (resnet34_8xb32_in1k), torchvision://NAME, '
        'or URL')
    parser.add_argument(
        '--out',
        metavar='FOLDER',
        help='where to put the files; by default the cache that configs '
        'with URLs use, $MMENGINE_HOME/checkpoints or '
        '$TORCH_HOME/hub/checkpoints')
    parser.add_argument(
        '--mirror',
        metavar='BASE',
        help='URL that stands in for the scheme and host of the files')
    parser.add_argument(
        '--offline',
        action='store_true',
        help='download nothing, say which file goes where')
    args = parser.parse_args()
    compat.quiet()
    failed = False
    for checkpoint in args.checkpoint:
        try:
            path = download_checkpoint(
                checkpoint,
                args.out,
                mirror=args.mirror,
                offline=args.offline)
        except (ValueError, DownloadError) as error:
            print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr)
            failed = True
        else:
            print(path)
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
