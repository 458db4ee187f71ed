"""Tables as text, and the files that results are written to."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..checkpoints import write_atomically


def readable(value: Any) -> str:
    """A value as text; floats with four digits."""
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown; floats with four digits.

    >>> print(markdown_table(pd.DataFrame({'a': [1.23456]})), end='')
    | a |
    | --- |
    | 1.235 |
    """
    lines = [[*table.columns], ['---'] * table.shape[1],
             *table.itertuples(index=False, name=None)]
    return ''.join('| ' + ' | '.join(
        readable(value).replace('|', '\\|') for value in line) + ' |\n'
                   for line in lines)


def print_table(table: pd.DataFrame, title: str) -> None:
    """Show a table on stdout; the first column is a name."""
    shown = Table(title=escape(title))
    for number, name in enumerate(table.columns):
        # Names that are cut could not be told apart.
        shown.add_column(
            escape(name), justify='right' if number else 'left',
            overflow='fold')
    for row in table.itertuples(index=False, name=None):
        shown.add_row(*(escape(readable(value)) for value in row))
    Console(file=sys.stdout).print(shown)


def write_results(results: Mapping[Path, Any]) -> None:
    """Write text, bytes and tables to files, each complete or not at all.

    A table becomes Markdown if the name ends in ``.md``, else CSV with all
    its digits.
    """
    for path, result in results.items():
        if isinstance(result, pd.DataFrame):
            result = (
                markdown_table(result) if path.suffix == '.md' else
                result.to_csv(index=False))
        write_atomically(path, result)
