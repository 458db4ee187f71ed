"""Tables as files: CSV to compute with, Markdown to read."""
from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def csv_table(rows: Sequence[Row]) -> str:
    """Rows as CSV, with a heading; floats keep all their digits.

    Args:
        rows: At least one; all have the keys of the first.

    Returns:
        Text with a newline after each row.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table.

    Args:
        rows: At least one; all have the keys of the first. Values are
            written as they are, floats with four digits.

    Returns:
        Text with a newline after each row.
    """
    lines = [list(rows[0]), ['---'] * len(rows[0])]
    lines += [[readable(value).replace('|', '\\|') for value in row.values()]
              for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def readable(value: Any) -> str:
    """A value as text; floats with four digits."""
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """``mean ± standard deviation`` of a sample; the mean alone of one."""
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) > 1:
        mean += f' ± {statistics.stdev(values):.{digits}f}'
    return mean
