"""A page that stands alone: one HTML file, pictures inside."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import jinja2

from .tables import readable

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 sans-serif; color: #222; background: #fff;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
         text-align: right; }
th:first-child, td:first-child { text-align: left; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for heading, content in sections %}
{% if heading %}<h2>{{ heading }}</h2>{% endif %}
{% if content is string %}
<p>{{ content }}</p>
{% elif content.columns is defined %}
<table>
<tr>{% for name in content.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in content.itertuples(index=False, name=None) %}
<tr>{% for value in row %}<td>{{ value | readable }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% else %}
<img src="data:image/png;base64,{{ content | base64 }}" alt="{{ heading }}">
{% endif %}
{% endfor %}
</body>
</html>
"""


def html_page(title: str, sections: Sequence[tuple[str, Any]]) -> str:
    """A page of sections.

    Args:
        title: Of the page.
        sections: Heading, or an empty one, and content of each: text for a
            paragraph, a table of pandas, or a PNG file. Whatever text they
            hold is shown as it is, not taken for HTML.

    Returns:
        The page, which refers to no other file.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        readable=readable,
        base64=lambda content: base64.b64encode(content).decode())
    return environment.from_string(_PAGE).render(
        title=title, sections=sections)
