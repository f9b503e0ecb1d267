"""The models of ComfyUI's official templates, for workflows that only give a file name.

``known_models.json`` maps "folder/name" to hub references; it was read out of the package
comfyui-workflow-templates-json (the version stands in the file) and is not pinned there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_FILE = Path(__file__).parent / "known_models.json"


def load_known_models() -> Mapping[str, tuple[str, ...]]:
    """Read the index: key → hub references ("owner/repo:path"), several when ambiguous."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {key: tuple(sources) for key, sources in data["files"].items()}
