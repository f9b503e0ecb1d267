"""How far the VRAM ladder went before, for the same card, ComfyUI and models.

A small JSON file in the state directory. It counts on a persistent volume only: a fresh
container starts at the top.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supervisor.config.settings import Settings
from supervisor.hardware.facts import HardwareFacts

FILE_NAME = "ladder.json"
_KEPT_SETS = 20


@dataclass(frozen=True, slots=True)
class Descent:
    """A step of the ladder, the reasons that led there, and when the last one was taken."""

    step: int = 0
    reasons: tuple[str, ...] = ()
    at: str = ""


class LadderMemory:
    """The descents of this volume, by what they were taken for. Blocking."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def recall(self) -> Descent:
        """Return the descent for this set; a file that cannot be read holds none."""
        entry: Any = self._read().get(self._key)
        with suppress(KeyError, TypeError, ValueError):
            reasons = tuple(map(str, entry["reasons"]))
            return Descent(max(int(entry["step"]), 0), reasons, str(entry["at"]))
        return Descent()

    def keep(self, descent: Descent) -> None:
        """Remember it; step 0 is forgotten. Raises OSError when it cannot be stored."""
        sets = self._read()
        sets.pop(self._key, None)
        if descent.step:
            sets[self._key] = asdict(descent)
        if not sets and not self._path.exists():
            return
        kept = dict(list(sets.items())[-_KEPT_SETS:])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"sets": kept}), encoding="utf-8")
        partial.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            sets = json.loads(self._path.read_text(encoding="utf-8"))["sets"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return sets if isinstance(sets, dict) else {}


def recall_descent(settings: Settings, facts: HardwareFacts) -> Descent:
    """Return where the ladder was on this volume for this set. Blocking, and seldom a read."""
    path = settings.supervisor.state_dir / FILE_NAME
    if not path.exists():
        return Descent()
    return LadderMemory(path, set_key(settings, facts)).recall()


def set_key(settings: Settings, facts: HardwareFacts) -> str:
    """Name what decides whether ComfyUI runs out of VRAM: when that changes, the ladder
    starts at the top again."""
    from hashlib import sha256  # noqa: PLC0415 - a boot that remembers nothing does without

    index = settings.gpu.index
    device = next((d for d in facts.gpu.devices if d.index == index), None)
    comfyui = facts.comfyui
    parts = {
        "card": [device.name, device.memory_total_mib] if device else None,
        "comfyui": [comfyui.version, comfyui.torch] if comfyui else None,
        "gpu": settings.gpu.model_dump(mode="json", include={"tier", "memory_mode", "index"}),
        "args": settings.comfyui.args,
        "models": settings.models.model_dump(
            mode="json",
            include={"bundles", "selectors", "files", "workflows", "civitai", "civitai_loras"},
        ),
    }
    text = json.dumps(parts, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]
