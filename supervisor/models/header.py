"""Reads the headers of model files: names and shapes of tensors, never the tensors.

Formats: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data) and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from supervisor.models.folders import PICKLE_EXTENSIONS

# The reference reader refuses larger safetensors headers too.
_MAX_HEADER_BYTES = 100_000_000
_MAX_GGUF_STRING_BYTES = 16 * 1024 * 1024
_MAX_GGUF_ENTRIES = 1_000_000


class Format(StrEnum):
    """What a file is, by its content and, for pickles, by its name."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PICKLE = "pickle"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the header says. ``shapes`` maps tensor names to dimensions.

    ``complete`` is False when the file is shorter than its header announces, None when the
    format does not tell. ``error`` is one sentence about a header that cannot be read.
    """

    format: Format
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    complete: bool | None = None
    error: str | None = None


def read_header(path: Path) -> ModelHeader:
    """Read the header of one file. Blocking; a broken one is reported in ``error``.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        suffix = path.suffix.lower()
        if suffix in PICKLE_EXTENSIONS:
            return ModelHeader(Format.PICKLE, size)
        try:
            if suffix == ".gguf":
                return _gguf(file, size)
            if suffix in (".safetensors", ".sft"):
                return _safetensors(file, size)
        except (ValueError, TypeError, KeyError, IndexError, struct.error, RecursionError) as exc:
            kind = Format.GGUF if suffix == ".gguf" else Format.SAFETENSORS
            # A header that ends early is the usual sign of a download under way.
            return ModelHeader(kind, size, complete=False, error=f"unreadable header: {exc}")
    return ModelHeader(Format.OTHER, size)


def _safetensors(file: BinaryIO, size: int) -> ModelHeader:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > _MAX_HEADER_BYTES:
        raise ValueError("it is no safetensors file")
    data: dict[str, Any] = json.loads(_exactly(file, length))
    metadata = data.pop("__metadata__", None) or {}
    shapes = {name: tuple(tensor["shape"]) for name, tensor in data.items()}
    end = max((tensor["data_offsets"][1] for tensor in data.values()), default=0)
    return ModelHeader(
        Format.SAFETENSORS,
        size,
        {str(k): str(v) for k, v in metadata.items()},
        shapes,
        complete=size >= 8 + length + end,
    )


_GGUF_NUMBERS = {0: "b", 1: "b", 2: "h", 3: "h", 4: "i", 5: "i", 6: "f", 7: "b", 10: "q", 11: "q",
                 12: "d"}  # fmt: skip
_GGUF_STRING, _GGUF_ARRAY = 8, 9


def _gguf(file: BinaryIO, size: int) -> ModelHeader:
    reader = _GgufReader(file, size)
    if reader.take(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    version, tensors, entries = reader.unpack("<IQQ")
    if version not in (2, 3) or max(tensors, entries) > _MAX_GGUF_ENTRIES:
        raise ValueError(f"GGUF version {version} is not known")
    metadata: dict[str, str] = {}
    for _ in range(entries):
        key = reader.string()
        value = reader.value(reader.unpack("<I")[0])
        if value is not None:
            metadata[key] = value
    shapes: dict[str, tuple[int, ...]] = {}
    furthest = 0
    for _ in range(tensors):
        name = reader.string()
        (dimensions,) = reader.unpack("<I")
        if dimensions > 8:
            raise ValueError("a tensor has too many dimensions")
        shapes[name] = tuple(reader.unpack(f"<{dimensions}Q"))
        _, offset = reader.unpack("<IQ")
        furthest = max(furthest, offset)
    # The last tensor's length depends on its quantisation; its start is a sure lower bound.
    return ModelHeader(
        Format.GGUF, size, metadata, shapes, complete=None if size > furthest else False
    )


class _GgufReader:
    """Reads little-endian values in sequence, a block at a time."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self._block, self._at = b"", 0

    def take(self, count: int) -> bytes:
        while len(self._block) - self._at < count:
            more = self._file.read(max(1 << 16, count))
            if not more:
                raise ValueError("it ends early")
            self._block = self._block[self._at :] + more
            self._at = 0
        self._at += count
        return self._block[self._at - count : self._at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        if length > _MAX_GGUF_STRING_BYTES:
            raise ValueError("a string is too long")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> str | None:
        """Read one value; only text and numbers are kept."""
        if kind == _GGUF_STRING:
            return self.string()
        if kind == _GGUF_ARRAY:
            inner, count = self.unpack("<IQ")
            if inner == _GGUF_STRING:
                for _ in range(count):
                    self.string()
            else:
                self.take(struct.calcsize("<" + _GGUF_NUMBERS[inner]) * count)
            return None
        (number,) = self.unpack("<" + _GGUF_NUMBERS[kind])
        return str(number)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = file.read(count - len(data))
        if not more:
            raise ValueError("it ends early")
        data += more
    return bytes(data)
