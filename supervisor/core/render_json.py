"""JSON as it is written everywhere: readable characters, and always encodable."""

from __future__ import annotations

import json
from typing import Any


def render_json(value: Any, *, indent: int | None = None) -> str:
    """Write JSON, compact without ``indent``; of what is no UTF-8, as in file names, escapes."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
