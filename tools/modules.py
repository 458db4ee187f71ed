"""List the modules that a recorder's source= can name, with their shapes."""
from __future__ import annotations

import argparse

from _start import add_config_options, start


def main() -> None:
    """List."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='of a distillation or of one network')
    parser.add_argument(
        'pattern', nargs='?', default='*',
        help='names to list, such as "backbone.layer?" (default: all)')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
        help='of the picture (default: what the pipeline ends with)')
    add_config_options(parser)
    args = parser.parse_args()
    from mmengine.logging import MMLogger

    from wsld_plugin import analysis
    from wsld_plugin.command_line import one_line_errors
    from wsld_plugin.config import load_config

    MMLogger.get_current_instance().setLevel('ERROR')
    with one_line_errors(analysis.AnalysisError):
        table = analysis.recordable_modules(
            load_config(args.config, args.cfg_options), args.pattern,
            args.shape)
        analysis.print_table(table, 'Modules, and what one picture makes')
        print('In a recorder: dict(type="ModuleOutputs", '
              f'source="{table.source.iloc[-1]}")')


if __name__ == '__main__':
    start(main)
