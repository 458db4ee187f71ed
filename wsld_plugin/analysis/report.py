"""A page that stands alone: one HTML file, pictures inside."""
from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from .tables import readable

# Headings from which on a page begins with a list of them.
_MANY = 8
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 sans-serif; color: #222; background: #fff;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h3 { font-size: 1rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; }
a { color: #0b5cad; } nav a { margin-right: 1rem; white-space: nowrap; }
img { max-width: 100%; height: auto; }
.scroll { overflow: auto; max-height: 40rem; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
         text-align: left; vertical-align: top; overflow-wrap: normal; }
th:first-child, td:first-child { padding-left: 0; }
.figure { text-align: right; white-space: nowrap; }
@media print { .scroll { overflow: visible; max-height: none; } }
{{ style }}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if sections | length >= many %}
<nav>{% for heading, _ in sections %}
{% if heading %}<a href="#part{{ loop.index }}">{{ heading }}</a>{% endif %}
{% endfor %}</nav>
{% endif %}
{% for heading, contents in sections %}
{% if heading %}<h2 id="part{{ loop.index }}">{{ heading }}</h2>{% endif %}
{% for content in contents %}
{% if content.__html__ is defined %}
{{ content }}
{% elif content is string %}
<p>{{ content }}</p>
{% elif content.columns is defined %}
{% set kinds = content | kinds %}
<div class="scroll" tabindex="0"><table>
<tr>{% for name in content.columns %}
<th{{ kinds[loop.index0] }}>{{ name }}</th>{% endfor %}</tr>
{% for row in content.itertuples(index=False, name=None) %}
<tr>{% for value in row %}
<td{{ kinds[loop.index0] }}>{{ value | readable }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% else %}
<img src="data:image/png;base64,{{ content | base64 }}" alt="{{ heading }}">
{% endif %}
{% endfor %}
{% endfor %}
</body>
</html>
"""


def html_page(title: str,
              sections: Sequence[tuple[str, Any]],
              style: str = '') -> str:
    """A page of sections; from eight of them on with a list of contents.

    Args:
        title: Of the page.
        sections: Heading, or an empty one, and content of each: text for a
            paragraph, a table of pandas, a PNG file, markup, or a list of
            these. Whatever text they hold is shown as it is, not taken for
            HTML, but for ``markupsafe.Markup``.
        style: CSS for that markup.

    Returns:
        The page, which refers to no other file.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        readable=readable,
        kinds=_kinds,
        base64=lambda content: base64.b64encode(content).decode())
    listed = [(heading, content if isinstance(content, list) else [content])
              for heading, content in sections]
    return environment.from_string(_PAGE).render(
        title=title, sections=listed, many=_MANY, style=Markup(style))


def _kinds(table: Any) -> list[Markup]:
    """How the columns are set: names and text left, figures right."""
    return [
        Markup(' class="figure"' if number and all(
            re.match(r'[-\d]', str(value))
            for value in table.iloc[:, number]) else '')
        for number in range(table.shape[1])
    ]
