"""How tools show and keep what they found."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wsld_plugin.analysis import readable
from wsld_plugin.checkpoints import write_atomically


def write(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files that are seen complete or not at all."""
    for name, data in files.items():
        write_atomically(out / name,
                         data.encode() if isinstance(data, str) else data)


def show(title: str, rows: Sequence[Mapping[str, Any]],
         console: Console) -> None:
    """Print a table; the first column is a name."""
    table = Table(title=title)
    for number, heading in enumerate(rows[0]):
        # Names that are cut could not be told apart.
        table.add_column(
            heading, justify='right' if number else 'left', overflow='fold')
    for row in rows:
        table.add_row(*(escape(readable(value)) for value in row.values()))
    console.print(table)
