"""How each tool starts: by the standard library alone, so that help is quick.

The package, with torch below it, is imported when the arguments are parsed.
"""
from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


def start(main: Callable[[], None]) -> None:
    """Call a tool's main, as a program of its own.

    Python puts the folder of a program in front of all others, where a
    user's own module called ``test`` would be taken for ours. It becomes the
    last, as workers that are spawned look this file up again. Ctrl-C while
    packages are imported is one line, and one that Python would drop, as it
    does while a loader forks its workers, comes again.
    """
    sys.unraisablehook = _interrupt_again
    here = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == here:
        sys.path.append(sys.path.pop(0))
    try:
        main()
    except KeyboardInterrupt:
        # A loader that was about to start its workers ends by an error.
        sys.unraisablehook = lambda dropped: None
        print(
            f'{os.path.basename(sys.argv[0])}: interrupted', file=sys.stderr)
        sys.exit(130)


def _interrupt_again(dropped: Any) -> None:
    """Hook for an exception that nobody can catch."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    # A tool that ends by SIGTERM may have been begun with SIGINT ignored.
    number = next((one for one in (signal.SIGINT, signal.SIGTERM)
                   if signal.getsignal(one) is signal.default_int_handler),
                  signal.SIGINT)
    # Here it would be dropped once more.
    later = threading.Timer(0.1, signal.pthread_kill,
                            (threading.main_thread().ident, number))
    later.daemon = True
    later.start()


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument that overrides what a config says."""
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override fields of the config; lists as key="[a,b]" or '
        'key=a,b, without blanks; more quotes keep commas and blanks: '
        'key="\'a, b\'"')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all tools with a runner take."""
    parser.add_argument('--work-dir', help='folder for logs and results')
    add_config_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none', help='what starts the processes of a distributed run')
    # torch.distributed.launch passes one or the other, by its version.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
