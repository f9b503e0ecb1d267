"""Timelines of the last boots, so that a slow boot can be told from a usual one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median

KEPT_BOOTS = 10


class BootHistory:
    """Spans of the last boots in one JSON file; a damaged file counts as an empty one.

    Blocking: two small files at most. One process writes it, once a boot.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def median(self) -> dict[str, float]:
        """Median seconds of each span over the recorded boots that had it."""
        collected: dict[str, list[float]] = {}
        for boot in self._read():
            for name, seconds in boot.items():
                collected.setdefault(name, []).append(seconds)
        return {name: round(median(values), 3) for name, values in collected.items()}

    def record(self, spans_s: Mapping[str, float]) -> None:
        """Append this boot and forget the oldest. Raises OSError when it cannot be stored."""
        boots = [*self._read(), dict(spans_s)][-KEPT_BOOTS:]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".part")
        partial.write_text(json.dumps({"boots": boots}), encoding="utf-8")
        partial.replace(self._path)

    def _read(self) -> list[dict[str, float]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        boots = content.get("boots") if isinstance(content, dict) else None
        if not isinstance(boots, list):
            return []
        return [_spans(boot) for boot in boots[-KEPT_BOOTS:] if isinstance(boot, dict)]


def _spans(boot: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(seconds)
        for name, seconds in boot.items()
        if isinstance(seconds, int | float) and math.isfinite(seconds)
    }
