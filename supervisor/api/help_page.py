"""The known troubles as a page of the pod: who reads an advice seldom has the documentation."""

from __future__ import annotations

import re
from html import escape

from supervisor.monitor.rulebook import Rule, load_rules

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Known troubles</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/assets/style.css">
</head>
<body>
  <header class="top"><h1>Known troubles</h1><p><a href="/">Back to the pod</a></p></header>
  <main>
{sections}
  </main>
</body>
</html>
"""


def render() -> str:
    """Write the page. Blocking: reads the rules."""
    return _PAGE.format(sections="\n".join(map(_section, load_rules().rules)))


def _section(rule: Rule) -> str:
    remedies = "".join(f"<li>{_text(remedy)}</li>" for remedy in rule.remedy)
    source = f'<a href="{escape(rule.source)}" rel="noopener noreferrer">from here</a>'
    return (
        f'<section class="card help" id="{escape(rule.code)}"><h2>{_text(rule.title)}</h2>'
        f"<pre>{escape(rule.example.strip())}</pre><p>{_text(rule.cause)}</p>"
        f'<ul>{remedies}</ul><p class="quiet">{escape(rule.code)} · the message is {source}</p>'
        "</section>"
    )


def _text(markdown: str) -> str:
    """Escape, and render the little Markdown that the rules use."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)
