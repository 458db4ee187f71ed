"""A page that stands alone: one HTML file, pictures inside."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from .tables import Row, readable

_STYLE = """
body { font: 16px/1.5 sans-serif; color: #222; background: #fff;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
         text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""


def heading(text: str) -> str:
    """A heading of a section."""
    return f'<h2>{escape(text)}</h2>'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f'<p>{escape(text)}</p>'


def image(png: bytes, what: str) -> str:
    """A PNG file inside the page; ``what`` says what it shows."""
    data = base64.b64encode(png).decode()
    return (f'<img src="data:image/png;base64,{data}" '
            f'alt="{escape(what, quote=True)}">')


def table(rows: Sequence[Row]) -> str:
    """A table of at least one row, with the keys of the first as heading."""
    head = ''.join(f'<th>{escape(key)}</th>' for key in rows[0])
    body = ''.join(
        '<tr>' + ''.join(f'<td>{escape(readable(value))}</td>'
                         for value in row.values()) + '</tr>\n'
        for row in rows)
    return f'<table>\n<tr>{head}</tr>\n{body}</table>'


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Of the page.
        parts: HTML, as the functions here make it.
    """
    body = '\n'.join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
