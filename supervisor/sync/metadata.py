"""What a PNG of ComfyUI tells about itself: its prompt and its workflow.

ComfyUI writes both as JSON in tEXt chunks before the pixels (``SaveImage`` in nodes.py).
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import BinaryIO

# Workflows reach a few hundred KB; what is larger is not read.
_MAX_TEXT_BYTES = 8 * 1024 * 1024
_HASH_DIGITS = 32


def png_metadata(file: BinaryIO) -> dict[str, str]:
    """Return prompt-hash, workflow-hash and prompt-id of a PNG, as far as it carries them.

    Raises:
        OSError: the file cannot be read.
    """
    texts = _texts(file)
    found: dict[str, str] = {}
    for name in ("prompt", "workflow"):
        if name in texts:
            found[f"{name}-hash"] = hashlib.sha256(texts[name]).hexdigest()[:_HASH_DIGITS]
    prompt_id = texts.get("prompt_id", b"").decode(errors="replace") or _workflow_id(texts)
    if prompt_id:
        found["prompt-id"] = prompt_id[:64]
    return found


def _workflow_id(texts: dict[str, bytes]) -> str:
    """Some savers put the prompt id into the workflow's ``extra``."""
    try:
        workflow = json.loads(texts.get("workflow", b"{}"))
        found = workflow.get("extra", {}).get("prompt_id", "")
    except (ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def _texts(file: BinaryIO) -> dict[str, bytes]:
    texts: dict[str, bytes] = {}
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return texts
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND") or length > _MAX_TEXT_BYTES:
            break
        data = file.read(length)
        file.read(4)  # checksum
        if kind == b"tEXt":
            keyword, _, text = data.partition(b"\0")
            texts[keyword.decode("latin-1").lower()] = text
    return texts
