"""Small model files with real headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path


def safetensors(
    path: Path,
    tensors: Mapping[str, Sequence[int]] | Sequence[str],
    metadata: Mapping[str, str] | None = None,
    *,
    fill: int = 0,
    truncate: int = 0,
) -> Path:
    """Write F16 tensors of the given shapes (default [2])."""
    data = safetensors_bytes(tensors, metadata, fill=fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[: len(data) - truncate])
    return path


def safetensors_bytes(
    tensors: Mapping[str, Sequence[int]] | Sequence[str],
    metadata: Mapping[str, str] | None = None,
    *,
    fill: int = 0,
) -> bytes:
    """The same as bytes."""
    shapes = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, (2,))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        count = 1
        for dimension in shape:
            count *= dimension
        header[name] = {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [offset, offset + 2 * count],
        }
        offset += 2 * count
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * offset


def gguf(path: Path, architecture: str, tensors: Sequence[str] = ("x.weight",)) -> Path:
    """Write a GGUF v3 header, with an array of strings and one of numbers before the name."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    values = [
        text("tokenizer.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.scores") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 1, 2, 3),
        text("general.version") + struct.pack("<II", 4, 7),
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
    ]
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values)
    for name in tensors:
        data += text(name) + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + bytes(256))
    return path
